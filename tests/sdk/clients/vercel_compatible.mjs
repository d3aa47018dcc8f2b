import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed } from "ai";

const vendor = createOpenAICompatible({
  name: "dashscope",
  apiKey: process.env.DASHSCOPE_API_KEY,
  baseURL: process.env.OPENAI_BASE_URL,
});
const model = vendor.textEmbeddingModel("text-embedding-v4");
console.log(JSON.stringify((await embed({ model, value: "a text to embed" })).embedding));
