// The page: follows the server and shows what it says.

import { Curves } from "./curves.js";
import { Devices } from "./devices.js";
import { byId, element, fillList, setAttribute, setText } from "./elements.js";
import { fillBar, showFigures, showQueues, showRun, showSavings } from "./facts.js";
import { follow } from "./link.js";
import { Run } from "./run.js";
import { concerns, outlook, verdict } from "./verdict.js";
import { clockTime, percent } from "./words.js";

const run = new Run();
const link = { live: false, ended: false, sinceSeconds: null };
const devices = new Devices();
let curves = null;
const news = [];
let told = new Set();
let drawing = 0;

/** Several events before the next frame are drawn once. */
function showSoon() {
  if (run.state !== null) document.title = titleNow();
  if (drawing === 0) drawing = requestAnimationFrame(show);
}

function show() {
  drawing = 0;
  showLink();
  if (run.state !== null) showRunNow();
  tellNews();
}

function showRunNow() {
  byId("main").hidden = false;
  curves ??= new Curves(byId("loss"), byId("accuracy"));
  showHead();
  showVerdict();
  showConcerns();
  showFigures(run);
  curves.update(run.state);
  devices.update([...run.devices.values()], run.nowSeconds);
  showSavings(run.state);
  showQueues(run.state);
  showRun(run.state);
}

function showHead() {
  const { run: info } = run.state;
  setText(byId("run-name"), info.folder.split("/").filter(Boolean).slice(-2).join("/"));
  const cuts = info.bundles.map((bundle) => bundle.cut).join(", ");
  setText(byId("run-about"), [info.base_model, info.task, cuts && `cut ${cuts}`].filter(Boolean).join(", "));
}

function showVerdict() {
  const { level, title, detail } = verdict(run);
  if (byId("state-title").textContent !== title) announce(`${title}. ${detail}`);
  setAttribute(byId("state-mark"), "data-level", level);
  setText(byId("state-title"), title);
  setText(byId("state-detail"), detail);
  const { part, words, left } = outlook(run);
  fillBar(byId("progress"), part);
  setAttribute(byId("progress"), "data-known", part !== null);
  setAttribute(byId("progress"), "aria-valuetext", words);
  setText(byId("progress-text"), words);
  setText(byId("progress-left"), left);
}

function showConcerns() {
  const found = concerns(run);
  announceNew(found);
  const list = byId("concerns");
  list.hidden = found.length === 0;
  fillList(list, found, () => element("li", {}, [element("b"), " ", element("span")]), (item, concern) => {
    setAttribute(item, "data-level", concern.level);
    setText(item.firstElementChild, concern.lead);
    setText(item.lastElementChild, concern.text);
  });
}

function showLink() {
  const words = linkWords();
  if (byId("link-text").textContent !== words) announce(words);
  setAttribute(byId("link"), "data-state", link.live ? "live" : link.sinceSeconds === null ? "opening" : "lost");
  setText(byId("link-text"), words);
}

function linkWords() {
  if (link.live) return "live";
  if (link.sinceSeconds === null) return "connecting";
  const since = clockTime(link.sinceSeconds);
  return link.ended ? `ended at ${since}; this is its last word` : `disconnected since ${since}, trying again`;
}

function titleNow() {
  const { part } = outlook(run);
  const far = part === null ? "" : `${percent(part, 0)} `;
  return `${link.live ? "" : "(disconnected) "}${far}${verdict(run).title} - SplitFrozen`;
}

/** A concern is told when it comes up, and not each time its number grows. */
function announceNew(found) {
  const kinds = new Map(found.filter(({ level }) => level !== "note").map(({ lead }) => [lead.replace(/[\d,]+ /g, ""), lead]));
  for (const [kind, lead] of kinds) if (!told.has(kind)) announce(lead);
  told = new Set(kinds.keys());
}

/** For screen readers, once, when they are not busy. */
function announce(text) {
  news.push(text);
}

function tellNews() {
  if (news.length > 0) setText(byId("announcer"), news.splice(0).join(" "));
}

follow({
  state(state) {
    run.replace(state);
    showSoon();
  },
  change(parts) {
    run.change(parts);
    showSoon();
  },
  alive(nowSeconds) {
    run.nowSeconds = nowSeconds;
    showSoon();
  },
  trouble(text) {
    byId("trouble").hidden = text === "";
    setText(byId("trouble"), text === "" ? "" : `The run cannot be read: ${text}`);
  },
  end({ run_ends }) {
    run.ended = run_ends;
  },
  link({ live, ended }) {
    if (link.live !== live || link.ended !== ended) {
      link.sinceSeconds = live ? null : (link.sinceSeconds ?? Date.now() / 1000);
      link.live = live;
      link.ended = ended;
    }
    showSoon();
  },
});
showLink();
