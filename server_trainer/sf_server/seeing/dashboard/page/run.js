// What is known of the run: a state, and the changes that come after it. Devices are kept by name.

export class Run {
  constructor() {
    this.state = null;
    this.devices = new Map();
    this.nowSeconds = 0;
    /** The server's last word was that the run ends with it. */
    this.ended = false;
  }

  /** A whole state replaces everything. */
  replace(state) {
    this.state = state;
    this.devices = new Map(state.devices.map((device) => [device.name, device]));
    this.nowSeconds = state.taken_s;
    this.ended = false;
  }

  /** A change brings the parts that are others now. */
  change(parts) {
    const { devices = [], forgotten = [], ...others } = parts;
    Object.assign(this.state, others);
    for (const device of devices) this.devices.set(device.name, device);
    for (const name of forgotten) this.devices.delete(name);
    this.nowSeconds = parts.taken_s;
  }

  /** How many devices there are of each status. */
  byStatus() {
    const counts = { sending: 0, waiting: 0, paused: 0, finished: 0, gone: 0 };
    for (const device of this.devices.values()) counts[device.status] += 1;
    return counts;
  }

  /** A sum over all devices. */
  sum(name) {
    let whole = 0;
    for (const device of this.devices.values()) whole += device[name] ?? 0;
    return whole;
  }
}
