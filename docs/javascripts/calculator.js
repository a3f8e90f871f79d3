// Hardware and time: counted operations of a training step (docs/hardware.md has the same table), put together.
"use strict";

const MODELS = {
  "ViT-B/32": { fast_goal: 0.114, global: 0.077, crop: 0.0088, kept: 125, weights: 151 },
  "ViT-B/16": { fast_goal: 0.271, global: 0.156, crop: 0.0351, kept: 257, weights: 150 },
  "ViT-L/14": { fast_goal: 1.107, global: 0.598, crop: 0.162, kept: 731, weights: 428 },
  "ViT-L/14-336": { fast_goal: 2.425, global: 1.257, crop: 0.3819, kept: 1493, weights: 428 },
};
// TFLOP/s; `reached` stands for a rate that was measured, of which no share is taken.
const DEVICES = {
  "H100 SXM": { peak: 989 },
  "A100": { peak: 312 },
  "RTX 4090": { peak: 165 },
  "A6000": { peak: 155 },
  "L4": { peak: 121 },
  "T4": { peak: 65 },
  "2 CPU cores (measured)": { peak: 0.454, reached: true },
};
const CROPS = 8; // of an image: the five fixed regions and some of a detector

function inWords(seconds) {
  for (const [unit, size] of [["days", 86400], ["hours", 3600], ["minutes", 60]]) {
    if (seconds >= 2 * size) return `${(seconds / size).toFixed(seconds < 10 * size ? 1 : 0)} ${unit}`;
  }
  return `${Math.max(1, Math.round(seconds))} seconds`;
}

function estimate({ model, objective, images, epochs, chunk, cached, device, devices, share }) {
  const facts = MODELS[model];
  const card = DEVICES[device];
  const rate = card.peak * (card.reached ? 1 : share / 100) * devices;
  const work = images * epochs * facts[objective] * (cached ? 4 / 3 : 1);
  const part = objective === "global" ? facts.global / facts.fast_goal : 1;
  const memory = (facts.weights * 18e6 + chunk * facts.kept * 1e6 * part) / 1e9;
  return { training: work / rate, pairs: (images * CROPS * facts.crop) / rate, memory };
}

function start(box) {
  const field = (name) => box.querySelector(`[name="${name}"]`);
  for (const [name, options] of [["model", MODELS], ["device", DEVICES]]) {
    for (const option of Object.keys(options)) field(name).add(new Option(option));
  }
  field("model").value = "ViT-B/16";
  field("device").value = "A100";
  const show = () => {
    const number = (name) => Number(field(name).value);
    const values = {
      model: field("model").value, objective: field("objective").value, device: field("device").value,
      cached: field("cached").checked, images: number("images"), epochs: number("epochs"),
      chunk: number("chunk"), devices: number("devices"), share: number("share"),
    };
    const bad = ["images", "epochs", "chunk", "devices", "share"].find((name) => !(values[name] > 0));
    if (bad) {
      field("result").value = `${bad}: a number above 0, please.`;
      return;
    }
    const { training, pairs, memory } = estimate(values);
    field("result").value =
      `Training: about ${inWords(training)}. Matching ${CROPS} crops an image: about ${inWords(pairs)}. ` +
      `Memory of each device: about ${memory.toFixed(0)} GB.`;
  };
  box.addEventListener("input", show);
  show();
}

document.querySelectorAll("[data-calculator]").forEach(start);
