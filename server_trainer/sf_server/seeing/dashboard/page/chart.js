// A line chart in SVG: axes with units, the last values written out, and a cursor for pointer and keyboard.

import { element, setAttribute, setText, shape } from "./elements.js";
import { linear, nearest, roomy, ticks, tickText } from "./scale.js";

const HEIGHT = 240;
const ABOVE = 22;
const BELOW = 40;
const LEFT = 46;
const RIGHT = 14;
const PAGE_STEPS = 10;

/**
 * One chart inside `host`.
 *
 * A series is `{name, kind, points: [{x, y}], wide}`: `kind` is its class in the style sheet, one without `name` is drawn but not read out,
 * a `wide` one goes on level to both sides. `options.read(x, values)` gives the words for one place, `options.y` the unit of the upward axis.
 */
export class Chart {
  constructor(host, options) {
    this.options = options;
    this.series = [];
    this.chosen = null;
    this.legend = element("ul", { class: "legend" });
    this.plot = shape("svg", { class: "plot", tabindex: "0", role: "slider", "aria-label": options.label });
    this.readout = element("p", { class: "readout" });
    this.nothing = element("p", { class: "nothing-yet" }, options.nothing);
    host.append(this.legend, this.plot, this.readout, this.nothing);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(host);
  }

  /** New series between two steps; the cursor stays where it is. */
  update(series, range) {
    this.rangeX = range[0] < range[1] ? range : [range[0] - 1, range[0] + 1];
    this.series = series.filter((one) => one.points.length > 0);
    this.draw();
  }

  get places() {
    const all = this.series.filter((one) => one.name).flatMap((one) => one.points.map((point) => point.x));
    return [...new Set(all)].sort((one, other) => one - other).map((x) => ({ x }));
  }

  listen() {
    this.plot.addEventListener("pointermove", (event) => this.pointAt(event));
    this.plot.addEventListener("pointerdown", (event) => this.pointAt(event));
    this.plot.addEventListener("pointerleave", () => this.choose(null));
    this.plot.addEventListener("blur", () => this.choose(null));
    this.plot.addEventListener("focus", () => this.choose(this.places.length - 1));
    this.plot.addEventListener("keydown", (event) => this.key(event));
  }

  pointAt(event) {
    if (this.toX === undefined || this.places.length === 0) return;
    const box = this.plot.getBoundingClientRect();
    const pixels = event.clientX - box.left;
    const places = this.places.map(({ x }) => ({ x: this.toX(x) }));
    this.choose(nearest(places, pixels));
  }

  key(event) {
    const last = this.places.length - 1;
    const at = this.chosen === null ? last : Math.min(this.chosen, last);
    const goal = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: last, PageDown: at - PAGE_STEPS, PageUp: at + PAGE_STEPS }[event.key];
    if (goal === undefined || last < 0) return;
    event.preventDefault();
    this.choose(Math.max(0, Math.min(last, goal)));
  }

  choose(index) {
    this.chosen = index === null || index < 0 ? null : index;
    this.drawCursor();
  }

  draw() {
    const width = this.plot.clientWidth || this.plot.parentElement.clientWidth;
    const empty = this.series.length === 0;
    this.nothing.hidden = !empty;
    for (const part of [this.plot, this.legend, this.readout]) part.toggleAttribute("hidden", empty);
    if (empty || width === 0) return;
    this.scale(width);
    setAttribute(this.plot, "viewBox", `0 0 ${width} ${HEIGHT}`);
    this.cursor = shape("g");
    this.plot.replaceChildren(...this.axes(width), ...this.series.map((one) => this.line(one)), ...this.ends(), this.cursor);
    this.drawLegend();
    this.drawCursor();
  }

  scale(width) {
    const points = this.series.flatMap((one) => one.points);
    this.rangeY = roomy(points.map((point) => point.y), this.options.range);
    this.toX = linear(this.rangeX, [LEFT, width - RIGHT]);
    this.toY = linear(this.rangeY, [HEIGHT - BELOW, ABOVE]);
  }

  axes(width) {
    const drawn = [];
    const upward = ticks(...this.rangeY, 4);
    for (const value of upward) {
      const y = Math.round(this.toY(value)) + 0.5;
      drawn.push(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
      drawn.push(shape("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, tickText(value, upward[1] - upward[0])));
    }
    const along = ticks(...this.rangeX, Math.max(2, Math.floor(width / 110))).filter(Number.isInteger);
    for (const value of along) {
      const x = this.toX(value);
      const anchor = x > width - RIGHT - 20 ? "end" : "middle";
      drawn.push(shape("text", { x: anchor === "end" ? width - RIGHT : x, y: HEIGHT - BELOW + 16, "text-anchor": anchor }, tickText(value, 1)));
    }
    drawn.push(shape("text", { x: 0, y: 11 }, this.options.y));
    drawn.push(shape("text", { x: width - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, this.options.x));
    return drawn;
  }

  line({ kind, points, wide }) {
    const [from, to] = this.rangeX;
    const whole = wide ? [{ ...points[0], x: from }, ...points, { ...points.at(-1), x: to }] : points;
    const places = whole.map(({ x, y }) => `${this.toX(x).toFixed(1)} ${this.toY(y).toFixed(1)}`);
    const path = whole.length === 1 ? `M${places[0]}h0` : `M${places.join("L")}`;
    return shape("path", { class: `series ${kind}`, d: path });
  }

  ends() {
    return this.series.filter((one) => one.name && !one.wide).map(({ kind, points }) => {
      const { x, y } = points.at(-1);
      return shape("circle", { class: `dot ${kind}`, r: 3.5, cx: this.toX(x), cy: this.toY(y) });
    });
  }

  drawLegend() {
    const items = this.series.filter((one) => one.name).map(({ name, kind, points }) => {
      const sample = shape("svg", { width: 22, height: 8, viewBox: "0 0 22 8", "aria-hidden": "true" }, [shape("path", { class: `series ${kind}`, d: "M1 4h20" })]);
      return element("li", {}, [sample, `${name} `, element("b", {}, this.options.value(points.at(-1).y))]);
    });
    this.legend.replaceChildren(...items);
  }

  drawCursor() {
    const places = this.places;
    if (this.cursor === undefined || places.length === 0) return;
    const index = Math.min(this.chosen ?? places.length - 1, places.length - 1);
    const { x } = places[index];
    const values = this.series.filter((one) => one.name).map((one) => ({ ...one, at: one.points.find((point) => point.x === x) }));
    const words = this.options.read(x, values.filter(({ at }) => at !== undefined));
    setText(this.readout, this.chosen === null ? `${this.options.hint}` : words);
    setAttribute(this.plot, "aria-valuemin", this.rangeX[0]);
    setAttribute(this.plot, "aria-valuemax", this.rangeX[1]);
    setAttribute(this.plot, "aria-valuenow", x);
    setAttribute(this.plot, "aria-valuetext", words);
    this.cursor.replaceChildren(...(this.chosen === null ? [] : this.cursorShapes(x, values)));
  }

  cursorShapes(x, values) {
    const place = Math.round(this.toX(x)) + 0.5;
    const dots = values.filter(({ at }) => at !== undefined).map(({ kind, at }) => shape("circle", { class: `dot ${kind}`, r: 4.5, cx: this.toX(x), cy: this.toY(at.y) }));
    return [shape("line", { class: "cursor", x1: place, x2: place, y1: ABOVE, y2: HEIGHT - BELOW }), ...dots];
  }
}
