// Redraws a plot when what it is drawn from has changed. Widgets come and go, and
// the graph above changes without a word to the nodes below, in both renderers:
// so plots that can be seen look for themselves, a few times a second.

const PERIOD = 80;      // milliseconds between looks, or longer: they take a tenth of the time at most
const SHARE = 9;        // of the time of a look that is left to others
const watched = new Set();
let timer = 0;

/**
 * Call `draw(read())` at once, and again whenever the JSON of `read()` is another; returns {check, close}.
 * `check(true)` draws in any case. onGone() is called when a look finds that `exists()` no more.
 */
export function watch(element, read, draw, { exists, onGone }) {
  const item = { seen: false, key: undefined, exists, onGone };
  item.check = (forced = false) => {
    try {
      const value = read();
      const key = JSON.stringify(value);
      if (key === item.key && !forced) {
        return;
      }
      item.key = key;
      draw(value);
    } catch (error) {
      if (item.failed !== error.message) {
        console.error("Fewstep plot:", error);      // once, and the other plots go on
      }
      item.failed = error.message;
    }
  };
  const sight = new IntersectionObserver((entries) => {
    item.seen = entries.at(-1).isIntersecting;
    if (item.seen) {
      item.check();
    }
  });
  sight.observe(element);
  watched.add(item);
  timer ||= setTimeout(look, PERIOD);
  return {
    check: item.check,
    close() {
      sight.disconnect();
      watched.delete(item);
    },
  };
}

function look() {
  const begun = performance.now();
  if (!document.hidden) {
    for (const item of watched) {
      if (!item.exists()) {
        item.onGone();
      } else if (item.seen) {
        item.check();
      }
    }
  }
  timer = watched.size ? setTimeout(look, Math.max(PERIOD, SHARE * (performance.now() - begun))) : 0;
}
