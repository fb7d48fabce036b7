// What the daemon tells as it happens, by server-sent events. A browser connects again by itself after a connection was
// cut, but gives up for good on any answer that is no stream: that is tried again here.

import { ask, now } from "./api.js";
import { element, nodesOf, time } from "./words.js";

const KEPT = 100;
const READ = 20;
const LEAST_MS = 1000;
const MOST_MS = 30000;
// The same move, as it was told and as the journal has it, is so many seconds apart at most.
const SAME_S = 120;
const TOLD = {
  "move-made": (one) => `${one.name} ${one.result} from ${nodesOf(one.from)} to ${nodesOf(one.to)}: ${one.reason}`,
  "move-held": (one) => `${one.name} stays (${one.reason}): ${one.detail}`,
  refused: (one) => `${one.name} refused (${one.reason}): ${one.detail}`,
  "start-placed": (one) => `${one.name} placed on ${nodesOf(one.nodes)}, CPUs ${one.cpus}, ${Math.round(one.took_s * 1000)} ms after its start`,
};
// What changes what is drawn.
const CHANGES = ["move-made", "refused", "start-placed", "step-taken", "settings-changed", "stream-opened", "pass-ended"];

export function follow(place, empty, { changed, lost }) {
  let wait = LEAST_MS;
  const begin = () => {
    const source = new EventSource("v1/events");
    source.addEventListener("open", () => {
      wait = LEAST_MS;
      lost(false);
      catchUp(place, empty);
    });
    source.addEventListener("error", () => {
      lost(true);
      if (source.readyState !== EventSource.CLOSED) return;
      // Many pages that were refused together do not come again together.
      setTimeout(begin, wait * (0.5 + Math.random()));
      wait = Math.min(MOST_MS, 2 * wait);
    });
    for (const kind of Object.keys(TOLD)) source.addEventListener(kind, (event) => add(place, empty, kind, JSON.parse(event.data), now()));
    for (const kind of CHANGES) source.addEventListener(kind, () => changed());
  };
  begin();
}

// Moves that were made while nobody listened; the other events are not kept by the daemon.
export async function catchUp(place, empty) {
  const made = await ask(`moves?limit=${READ}`).catch(() => []);
  for (const one of made.reverse()) add(place, empty, "move-made", one, Date.parse(one.at) / 1000);
}

function add(place, empty, kind, facts, at) {
  const own = kind === "move-made" ? JSON.stringify([facts.project, facts.name, facts.from, facts.to, facts.took_s]) : "";
  const lines = [...place.children];
  if (own && lines.some((line) => line.dataset.move === own && Math.abs(Number(line.dataset.at) - at) < SAME_S)) return;
  empty.hidden = true;
  const line = element("li", { class: kind, "data-at": at, "data-move": own || null }, element("time", { datetime: time(at) }, time(at)), TOLD[kind](facts));
  place.insertBefore(line, lines.find((other) => Number(other.dataset.at) <= at) || null);
  while (place.children.length > KEPT) place.lastElementChild.remove();
}
