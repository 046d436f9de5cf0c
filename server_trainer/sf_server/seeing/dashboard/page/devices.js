// The table of devices: sorted by buttons, filtered, in pages, so that a thousand of them cost no more than one page.

import { byId, element, fillList, setAttribute, setText, shape } from "./elements.js";
import { ago, bytes, clockTime, count, known, number, some } from "./words.js";

const PAGE_ROWS = 25;
const SHAPES = {
  sending: "M6 10.5V1.5M2 5l4-3.5L10 5",
  waiting: "M6 2a4 4 0 1 0 .01 0",
  paused: "M4 2v8M8 2v8",
  finished: "M1.5 6.5 4.5 9.5 10.5 2.5",
  gone: "M2 2l8 8M10 2l-8 8",
};
/** In the order in which they want to be looked at. */
const STATUSES = ["gone", "paused", "waiting", "sending", "finished"];

/** `from` orders; `words` is shown; columns of numbers start with the largest. */
const COLUMNS = [
  { id: "name", title: "Device", kind: "text", from: (device) => device.name, words: (device) => device.name },
  { id: "status", title: "State", kind: "text", from: (device) => STATUSES.indexOf(device.status) },
  { id: "cut", title: "Cut", from: (device) => device.cut ?? -1, words: (device) => count(device.cut), about: "layers that run on the device" },
  { id: "samples", title: "Samples", from: (device) => device.samples, words: (device) => count(device.samples), about: "stored, of both roles" },
  { id: "samples_per_s", title: "Samples/s", from: (device) => device.samples_per_s ?? -1, words: (device) => (known(device.samples_per_s) ? number(device.samples_per_s) : "–"), about: "over the last seconds" },
  { id: "bytes_in", title: "Received", from: (device) => device.bytes_in, words: (device) => bytes(device.bytes_in), about: "bytes from the device" },
  { id: "bytes_out", title: "Sent", from: (device) => device.bytes_out, words: (device) => bytes(device.bytes_out), about: "bytes to the device" },
  { id: "last_seen_s", title: "Last seen", from: (device) => device.last_seen_s },
  { id: "reason", title: "Remarks", kind: "text reason", from: (device) => reason(device), words: (device) => reason(device) },
];

export class Devices {
  constructor() {
    this.sort = { column: COLUMNS[1], up: true };
    this.filter = "";
    this.page = 0;
    this.devices = [];
    this.nowSeconds = 0;
    byId("devices-head").append(...COLUMNS.map((column) => this.heading(column)));
    this.input = byId("devices-filter");
    this.input.addEventListener("input", () => this.filterBy(this.input.value));
    byId("pages-back").addEventListener("click", () => this.turn(-1));
    byId("pages-on").addEventListener("click", () => this.turn(1));
  }

  update(devices, nowSeconds) {
    this.devices = devices;
    this.nowSeconds = nowSeconds;
    this.show();
  }

  heading(column) {
    const button = element("button", { type: "button" }, column.title);
    if (column.about) button.title = column.about;
    button.addEventListener("click", () => this.sortBy(column));
    return element("th", { scope: "col", role: "columnheader", class: column.kind ?? "number", "data-column": column.id }, [button]);
  }

  sortBy(column) {
    const same = this.sort.column === column;
    this.sort = { column, up: same ? !this.sort.up : column.kind !== undefined };
    this.page = 0;
    this.show();
  }

  filterBy(text) {
    this.filter = text.trim().toLowerCase();
    this.page = 0;
    this.show();
  }

  turn(pages) {
    this.page += pages;
    this.show();
  }

  chosen() {
    const { column, up } = this.sort;
    const direction = up ? 1 : -1;
    return this.devices
      .filter((device) => this.filter === "" || searched(device).includes(this.filter))
      .sort((one, other) => direction * compare(column.from(one), column.from(other)) || compare(one.name, other.name));
  }

  show() {
    const chosen = this.chosen();
    const pages = Math.max(1, Math.ceil(chosen.length / PAGE_ROWS));
    this.page = Math.max(0, Math.min(this.page, pages - 1));
    const start = this.page * PAGE_ROWS;
    fillList(byId("devices-rows"), chosen.slice(start, start + PAGE_ROWS), makeRow, (row, device) => this.fillRow(row, device));
    for (const heading of byId("devices-head").children) setAttribute(heading, "aria-sort", this.sortWord(heading.dataset.column));
    this.showCount(chosen.length);
    this.showPages(start, chosen.length, pages);
  }

  sortWord(id) {
    if (this.sort.column.id !== id) return "none";
    return this.sort.up ? "ascending" : "descending";
  }

  showCount(shown) {
    const all = this.devices.length;
    setText(byId("devices-count"), this.filter === "" ? some(all, "device") : `${count(shown)} of ${some(all, "device")}`);
    byId("devices-none").hidden = shown > 0;
    byId("devices-table").hidden = all === 0;
    setText(byId("devices-none"), all === 0 ? "No device has connected yet." : "No device matches the filter.");
  }

  showPages(start, shown, pages) {
    byId("devices-pages").hidden = pages === 1;
    byId("pages-back").disabled = this.page === 0;
    byId("pages-on").disabled = this.page === pages - 1;
    setText(byId("pages-where"), `${count(start + 1)} to ${count(Math.min(start + PAGE_ROWS, shown))} of ${count(shown)}`);
  }

  fillRow(row, device) {
    COLUMNS.forEach((column, index) => {
      const cell = row.children[index];
      if (column.id === "status") fillStatus(cell, device.status);
      else if (column.id === "last_seen_s") this.fillLastSeen(cell, device);
      else setText(cell, column.words(device));
    });
  }

  fillLastSeen(cell, device) {
    setText(cell, ago(device.last_seen_s, this.nowSeconds));
    setAttribute(cell, "title", clockTime(device.last_seen_s, this.nowSeconds));
  }
}

function makeRow() {
  const cells = COLUMNS.map(({ id, kind, title }) => {
    const attributes = { class: kind ?? "number", role: id === "name" ? "rowheader" : "cell" };
    if (id === "name") return element("th", { ...attributes, scope: "row" });
    return element("td", id === "reason" || id === "status" ? attributes : { ...attributes, "data-label": title });
  });
  return element("tr", { role: "row" }, cells);
}

function fillStatus(cell, status) {
  if (cell.dataset.status === status) return;
  cell.dataset.status = status;
  const mark = shape("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, [shape("path", { d: SHAPES[status] ?? "" })]);
  cell.replaceChildren(element("span", { class: "status", "data-status": status }, [mark, status]));
}

/** Its own words, and what the server found. */
function reason(device) {
  const found = [device.reason];
  if (device.rejected > 0) found.push(`${some(device.rejected, "sample")} rejected`);
  if (device.malformed > 0) found.push(`${some(device.malformed, "message")} of no known form`);
  if (device.skipped > 0) found.push(`${some(device.skipped, "row")} of its source could not be used`);
  return found.filter(Boolean).join("; ");
}

function searched(device) {
  return `${device.name}\n${device.status}\n${reason(device)}`.toLowerCase();
}

function compare(one, other) {
  if (typeof one === "string") return COLLATOR.compare(one, other);
  return one - other;
}

const COLLATOR = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
