// Run both towers and the zero-shot pipeline on an exported folder: node run.mjs INPUT.json, which prints JSON.
// The input names the `model`, its `host` (a folder or an http address), a folder as `cache`, the `dtype`, an `image`,
// `texts`, and whether it `is_siglip`.
import { readFileSync } from "node:fs";
import * as transformers from "@huggingface/transformers";

const { AutoProcessor, AutoTokenizer, RawImage, env, pipeline } = transformers;
const input = JSON.parse(readFileSync(process.argv[2], "utf8"));
const isRemote = input.host.startsWith("http");
env.allowLocalModels = !isRemote;
env.allowRemoteModels = isRemote;
env.cacheDir = input.cache;
if (isRemote) {
  env.remoteHost = input.host;
  env.remotePathTemplate = "{model}/";
} else {
  env.localModelPath = input.host;
}

const { model, dtype, is_siglip, texts } = input;
const [Texts, Images] = is_siglip
  ? [transformers.SiglipTextModel, transformers.SiglipVisionModel]
  : [transformers.CLIPTextModelWithProjection, transformers.CLIPVisionModelWithProjection];
const tokenizer = await AutoTokenizer.from_pretrained(model);
const processor = await AutoProcessor.from_pretrained(model);
const tokens = tokenizer(texts, { padding: is_siglip ? "max_length" : true, truncation: true });
const image = await RawImage.read(input.image);
const pixels = await processor(image);
const textOutput = await (await Texts.from_pretrained(model, { dtype }))(tokens);
const imageOutput = await (await Images.from_pretrained(model, { dtype }))(pixels);
const classify = await pipeline("zero-shot-image-classification", model, { dtype });
const scores = await classify(image, texts, { hypothesis_template: "{}" });
console.log(
  JSON.stringify({
    version: env.version,
    input_ids: tokens.input_ids.tolist().map((row) => row.map(Number)),
    pixel_values: pixels.pixel_values.tolist(),
    text_embeds: (textOutput.text_embeds ?? textOutput.pooler_output).tolist(),
    image_embeds: (imageOutput.image_embeds ?? imageOutput.pooler_output).tolist(),
    scores: Object.fromEntries(scores.map(({ label, score }) => [label, score])),
  }),
);
