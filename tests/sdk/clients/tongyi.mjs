import { AlibabaTongyiEmbeddings } from "@langchain/community/embeddings/alibaba_tongyi";

const made = new AlibabaTongyiEmbeddings({ apiKey: process.env.ALIBABA_API_KEY, modelName: "text-embedding-v2" });
console.log(JSON.stringify(await made.embedQuery("a text to embed")));
