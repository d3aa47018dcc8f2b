import OpenAI from "openai";

const answer = await new OpenAI().embeddings.create({ model: "text-embedding-v4", input: "a text to embed" });
console.log(JSON.stringify(answer.data));
