// The two charts: loss, and accuracy on the samples that devices held out.

import { Chart } from "./chart.js";
import { count, known, number, percent } from "./words.js";

const PARTS_OF_MEAN = 20;

export class Curves {
  constructor(lossHost, accuracyHost) {
    this.loss = new Chart(lossHost, {
      label: "Loss by training step; arrow keys read the values",
      x: "training step",
      y: "loss in nats per target",
      value: number,
      nothing: "The first training step has not been taken yet.",
      hint: "Point at the curve, or use the arrow keys, to read it.",
      read: (x, values) => `Step ${count(x)}: ${values.map(({ name, at }) => `${name} ${number(at.y)}`).join(", ")}`,
      range: { floor: 0 },
    });
    this.accuracy = new Chart(accuracyHost, {
      label: "Accuracy by training step; arrow keys read the values",
      x: "training step",
      y: "accuracy in percent",
      value: (value) => percent(value / 100),
      nothing: "Nothing was validated yet: that happens after every epoch, if devices hold samples out.",
      hint: "“Commonest answer” is what always giving it would score.",
      read: (x, values) => `Step ${count(x)}: ${values.map(({ name, at }) => `${name} ${percent(at.y / 100)}`).join(", ")}`,
      range: { floor: 0, ceiling: 100, atLeast: 4 },
    });
  }

  update({ loss_curve, validations, progress }) {
    const range = [0, Math.max(1, progress.step)];
    const training = points(loss_curve, (point) => point.loss);
    this.loss.update([
      { kind: "raw", points: training },
      { kind: "mean", name: "training, running mean", points: runningMean(training) },
      { kind: "held", name: "held out", points: points(validations, (point) => point.loss) },
    ], range);
    this.accuracy.update([
      { kind: "held", name: "held out", points: points(validations, (point) => 100 * point.accuracy) },
      { kind: "floor", name: "commonest answer", wide: true, points: points(validations, (point) => 100 * point.floor) },
    ], range);
  }
}

function points(curve, value) {
  return curve.map((point) => ({ x: point.step, y: value(point) })).filter(({ y }) => known(y));
}

/** Mean of each point and those before it, a twentieth of the curve. */
function runningMean(curve) {
  const width = Math.max(1, Math.round(curve.length / PARTS_OF_MEAN));
  let sum = 0;
  return curve.map(({ x, y }, index) => {
    sum += y - (index >= width ? curve[index - width].y : 0);
    return { x, y: sum / Math.min(index + 1, width) };
  });
}
