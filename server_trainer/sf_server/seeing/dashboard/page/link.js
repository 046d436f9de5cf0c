// The link to the server: server-sent events, an eye on their silence, and trying again.

const SILENCE_MS = 7000;
const RETRY_MS = [500, 1000, 2000, 4000];

/**
 * Follows `/events` for as long as the page is open.
 *
 * `told.state` gets whole states, `told.change` what changed since, `told.alive` the server's time in seconds, `told.trouble` what the server
 * says when it cannot read the run ("" once it can again), `told.end` its last word, `told.link({live, ended})` whether there is a server at
 * all, and whether it took its leave.
 */
export function follow(told) {
  let source = null;
  let silence = 0;
  let retry = 0;
  let failures = 0;
  let ended = false;

  const on = {
    state(content) {
      told.trouble("");
      told.state(content);
    },
    change: told.change,
    alive: ({ taken_s }) => told.alive(taken_s),
    trouble: ({ error }) => told.trouble(error),
  };

  function open() {
    source = new EventSource("events");
    for (const [name, act] of Object.entries(on)) {
      source.addEventListener(name, (event) => {
        heard();
        act(JSON.parse(event.data));
      });
    }
    source.addEventListener("end", (event) => {
      ended = true;
      told.end(JSON.parse(event.data));
      lost();
    });
    source.addEventListener("error", lost);
    watch();
  }

  function heard() {
    failures = 0;
    ended = false;
    told.link({ live: true, ended });
    watch();
  }

  function watch() {
    clearTimeout(silence);
    silence = setTimeout(lost, SILENCE_MS);
  }

  function lost() {
    if (source === null) return;
    source.close();
    source = null;
    clearTimeout(silence);
    told.link({ live: false, ended });
    retry = setTimeout(open, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
    failures += 1;
  }

  /** A page that is left, and perhaps kept by the browser to come back to, must not hold a connection. */
  function leave() {
    clearTimeout(silence);
    clearTimeout(retry);
    source?.close();
    source = null;
  }

  addEventListener("pagehide", leave);
  addEventListener("pageshow", ({ persisted }) => {
    if (persisted) open();
  });
  open();
}
