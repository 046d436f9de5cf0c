// The numbers around the charts: key figures, what was saved, queues, and what was asked for.

import { byId, element, fillList, setAttribute, setText } from "./elements.js";
import { bytes, count, known, number, percent, some } from "./words.js";

const FLOPS = ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"];
const NEARLY_FULL = 0.9;
const FULL = 0.995;

export function showFigures(run) {
  const { progress, savings, store } = run.state;
  const statuses = run.byStatus();
  const connected = statuses.sending + statuses.waiting + statuses.paused;
  const figures = [
    ["Training speed", known(progress.tokens_per_s) ? number(progress.tokens_per_s) : "–", "tokens/s, last minute"],
    ["Samples stored", count(store.train_samples), `and ${count(store.validation_samples)} held out`],
    ["Devices connected", count(connected), `${count(statuses.finished)} finished, ${count(statuses.gone)} gone`],
    ["Received", bytes(run.sum("bytes_in")), `${number(samplesPerSecond(run))} samples/s now`],
    ["Compute saved", percent(savings.part, 0), savings.is_estimated ? "of the devices’ work, estimated" : "of the devices’ work"],
    ["Uploads saved", bytes(savings.upload_bytes), "not sent again"],
  ];
  fillList(byId("figures"), figures, makeFigure, fillChildren);
}

export function showSavings({ savings }) {
  fillPairs(byId("saved"), [
    ["Forward passes saved", flops(savings.forward_flops)],
    ["Backward passes saved", flops(savings.backward_flops)],
    ["Computed on the devices", flops(savings.spent_flops)],
    ["Uploads saved", bytes(savings.upload_bytes)],
  ]);
  byId("saved-estimated").hidden = !savings.is_estimated;
}

export function showQueues({ queue, store }) {
  const pairs = [["Not trained on yet", some(queue.untrained, "sample")]];
  if (queue.lifted !== null) pairs.push(["Kept lifted", some(queue.lifted, "sample")]);
  pairs.push(["On the disk", bytes(store.file_bytes)]);
  fillPairs(byId("queues"), pairs);
  const part = store.quota_bytes > 0 ? store.used_bytes / store.quota_bytes : 0;
  fillBar(byId("store-bar"), part);
  setAttribute(byId("store-bar"), "data-level", part >= FULL ? "bad" : part >= NEARLY_FULL ? "warn" : "good");
  setText(byId("store-text"), `Store: ${bytes(store.used_bytes)} of ${bytes(store.quota_bytes)} used (${percent(part)})`);
}

export function showRun({ run, progress }) {
  fillPairs(byId("run"), [
    ["Model", run.base_model],
    ["Task", run.labels.length > 0 ? `${run.task}: ${run.labels.join(", ")}` : run.task],
    ["Cuts", run.bundles.map((bundle) => `${bundle.cut} of ${bundle.layers}`).join(", ")],
    ["Expected", run.expect_devices === null ? some(run.expect_samples, "sample") : some(run.expect_devices, "device")],
    ["Epochs", count(run.epochs)],
    ["Learning rate now", number(progress.learning_rate ?? NaN)],
    ["Receives on", run.address ?? "not yet"],
    ["Folder", run.folder],
  ]);
}

/** A bar that shows a part, 0 to 1; null where nobody knows it. */
export function fillBar(bar, part) {
  const shown = Math.max(0, Math.min(1, part ?? 0));
  bar.firstElementChild.style.width = `${(100 * shown).toFixed(2)}%`;
  setAttribute(bar, "aria-valuenow", known(part) ? (100 * shown).toFixed(1) : null);
}

function samplesPerSecond(run) {
  return run.sum("samples_per_s");
}

function flops(value) {
  let amount = value;
  let unit = 0;
  while (amount >= 999.5 && unit < FLOPS.length - 1) {
    amount /= 1000;
    unit += 1;
  }
  return `${number(amount)} ${FLOPS[unit]}`;
}

function makeFigure() {
  return element("div", {}, [element("dt"), element("dd"), element("dd")]);
}

function fillChildren(parent, words) {
  words.forEach((text, index) => setText(parent.children[index], text));
}

function fillPairs(list, pairs) {
  fillList(list, pairs, () => element("div", {}, [element("dt"), element("dd")]), fillChildren);
}
