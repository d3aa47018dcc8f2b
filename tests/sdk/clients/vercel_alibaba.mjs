import { createAlibaba } from "@ai-sdk/alibaba";
import { embed } from "ai";

const vendor = createAlibaba({
  baseURL: `${process.env.BASE}/compatible-mode/v1`,
  embeddingBaseURL: `${process.env.BASE}/api/v1`,
});
const model = vendor.textEmbeddingModel("text-embedding-v4");
console.log(JSON.stringify((await embed({ model, value: "a text to embed" })).embedding));
