// Is it all right? One sentence, how far it is, and what needs a look. Pure: the run goes in, words come out.

import { ago, clockTime, count, duration, known, percent, some } from "./words.js";

const STALLED_S = 120;
const NAMES_SHOWN = 3;
const STORE_NEARLY_FULL = 0.9;
const STORE_FULL = 0.995;

/** `{level, title, detail}`; level is good, work, wait or off. */
export function verdict(run) {
  const { progress, run: info } = run.state;
  const phase = run.ended && run.state.phase !== "done" ? "stopped" : run.state.phase;
  const epoch = `Epoch ${Math.min(Math.max(1, progress.epoch), info.epochs)} of ${info.epochs}, step ${count(progress.step)}`;
  switch (phase) {
    case "training":
      return { level: "work", title: "Training", detail: `${epoch}; the last one ${ago(progress.last_step_s, run.nowSeconds)}` };
    case "waiting":
      return { level: "wait", title: "Waiting for samples", detail: `${waitsFor(run)}. ${epoch}` };
    case "done":
      return { level: "good", title: "Done", detail: `Every sample was trained on ${some(info.epochs, "time")}, in ${some(progress.step, "step")}. The adapter is in ${info.folder}/adapter` };
    default:
      return { level: "off", title: "Stopped", detail: `Nobody works on this run; sf-server train --run ${info.folder} --resume goes on. ${epoch}` };
  }
}

function waitsFor(run) {
  const { progress, queue, run: info } = run.state;
  const { finished } = run.byStatus();
  const devices = info.expect_devices === null
    ? `${count(run.state.store.train_samples)} of ${some(info.expect_samples, "sample")} are here`
    : `${count(finished)} of ${some(info.expect_devices, "device")} ${finished === 1 ? "has" : "have"} finished`;
  const since = known(progress.last_step_s)
    ? `Since ${clockTime(progress.last_step_s, run.nowSeconds)} (${duration(run.nowSeconds - progress.last_step_s)})`
    : "Since the start";
  return `${since}: ${count(queue.untrained)} of ${some(info.window_samples, "sample")} for the next steps are here; ${devices}`;
}

/** `{part, words, left}` of the progress bar; part is null as long as nobody can know it. */
export function outlook(run) {
  const { phase, progress, queue, store, run: info } = run.state;
  const all = Math.max(store.train_samples, info.expect_samples ?? 0);
  const samples = `${count(progress.samples_trained)} of ${count(all * info.epochs)} trained (${some(all, "sample")} × ${some(info.epochs, "epoch")})`;
  if (phase === "done") return { part: 1, words: `${count(progress.samples_trained)} samples trained`, left: "" };
  const part = known(progress.part_done) ? progress.part_done : expectedPart(run.state);
  if (part === null) {
    const so_far = `${count(store.train_samples - queue.untrained)} of ${some(store.train_samples, "sample")} that came so far are trained on`;
    return { part: null, words: so_far, left: "no estimate while samples still arrive" };
  }
  return { part, words: `${percent(part)}, ${samples}`, left: phase === "training" ? timeLeft(part, progress) : "" };
}

/** While samples arrive: of those that were said to come. */
function expectedPart({ progress, store, run }) {
  if (run.expect_samples === null || progress.step === 0) return null;
  return Math.min(1, progress.samples_trained / (Math.max(run.expect_samples, store.train_samples) * run.epochs));
}

function timeLeft(part, { tokens_trained, tokens_per_s }) {
  if (!(tokens_per_s > 0) || !(part > 0) || tokens_trained <= 0) return "no estimate yet";
  const seconds = (tokens_trained * (1 / part - 1)) / tokens_per_s;
  return `about ${duration(roughly(seconds))} left at the pace of the last minute`;
}

/** An estimate is not known to the second. */
function roughly(seconds) {
  const grain = seconds < 60 ? 5 : seconds < 600 ? 30 : seconds < 7200 ? 60 : 600;
  return Math.max(grain, grain * Math.round(seconds / grain));
}

/** What needs a look, the worst first: `{level, lead, text}`; level is bad, warn or note. */
export function concerns(run) {
  const found = [...storeConcerns(run), ...trainingConcerns(run), ...deviceConcerns(run)];
  const order = { bad: 0, warn: 1, note: 2 };
  return found.sort((one, other) => order[one.level] - order[other.level]);
}

function storeConcerns(run) {
  const { used_bytes, quota_bytes } = run.state.store;
  const part = used_bytes / quota_bytes;
  if (run.state.phase === "done" || part < STORE_NEARLY_FULL) return [];
  if (part >= STORE_FULL) return [{ level: "bad", lead: "The store is full.", text: "Devices wait and lose nothing. Resume with a larger --max-store-bytes." }];
  return [{ level: "warn", lead: `The store is ${percent(part, 0)} full.`, text: "When it is full, devices wait. Resume with a larger --max-store-bytes." }];
}

function trainingConcerns(run) {
  const { phase, progress } = run.state;
  const found = [];
  if (progress.skipped_steps > 0) {
    found.push({ level: "warn", lead: `${some(progress.skipped_steps, "step")} skipped.`, text: "The gradient was not finite. A few are harmless; if they go on, lower the learning rate." });
  }
  const silent = run.nowSeconds - progress.last_step_s;
  if (phase === "training" && known(progress.last_step_s) && silent > STALLED_S) {
    found.push({ level: "warn", lead: "No step was finished", text: `since ${clockTime(progress.last_step_s, run.nowSeconds)} (${ago(progress.last_step_s, run.nowSeconds)}).` });
  }
  return found;
}

function deviceConcerns(run) {
  const devices = [...run.devices.values()];
  const found = [];
  const { phase, run: info } = run.state;
  const running = phase === "training" || phase === "waiting";
  const with_status = (status) => devices.filter((device) => device.status === status);
  if (running && with_status("gone").length > 0) {
    found.push({ level: "warn", ...about(with_status("gone"), "is gone", "are gone"), text: `Silent, and not finished: ${named(with_status("gone"))}.` });
  }
  if (running && with_status("paused").length > 0) {
    found.push({ level: "note", ...about(with_status("paused"), "pauses", "pause"), text: `${named(with_status("paused"))}. Why stands below.` });
  }
  const unusable = devices.filter((device) => device.rejected > 0);
  if (unusable.length > 0) {
    found.push({ level: "warn", lead: `${some(run.sum("rejected"), "sample")} rejected.`, text: `They can never be trained on. From ${named(unusable)}.` });
  }
  const malformed = devices.filter((device) => device.malformed > 0);
  if (malformed.length > 0) {
    found.push({ level: "warn", lead: `${some(run.sum("malformed"), "message")} of no known form.`, text: `From ${named(malformed)}: another version, or something that is no device.` });
  }
  const missing = (info.expect_devices ?? 0) - devices.length;
  if (phase === "waiting" && missing > 0) {
    found.push({ level: "note", lead: `${some(missing, "device")} of ${count(info.expect_devices)} never connected.`, text: info.address === null ? "" : `Devices are received on ${info.address}.` });
  }
  return found;
}

function about(devices, one, many) {
  return { lead: `${some(devices.length, "device")} ${devices.length === 1 ? one : many}.` };
}

function named(devices) {
  const names = devices.slice(0, NAMES_SHOWN).map((device) => device.name);
  const more = devices.length - names.length;
  return more > 0 ? `${names.join(", ")} and ${count(more)} more` : names.join(", ");
}
