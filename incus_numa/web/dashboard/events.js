// What the daemon tells as it happens, by server-sent events; the browser connects again by itself.

import { clock } from "./charts.js";
import { element, nodesOf } from "./words.js";

const KEPT = 100;
const TOLD = {
  "move-made": (one) => `${one.name} ${one.result} from ${nodesOf(one.from)} to ${nodesOf(one.to)}: ${one.reason}`,
  "move-held": (one) => `${one.name} stays (${one.reason}): ${one.detail}`,
  refused: (one) => `${one.name} refused (${one.reason}): ${one.detail}`,
  "start-placed": (one) => `${one.name} placed on ${nodesOf(one.nodes)}, CPUs ${one.cpus}, ${Math.round(one.took_s * 1000)} ms after its start`,
};
// What changes what is drawn.
const CHANGES = ["move-made", "refused", "start-placed", "step-taken", "settings-changed", "stream-opened", "pass-ended"];

export function follow(place, empty, { changed, lost }) {
  const source = new EventSource("v1/events");
  source.addEventListener("open", () => lost(false));
  source.addEventListener("error", () => lost(true));
  for (const kind of Object.keys(TOLD)) source.addEventListener(kind, (event) => add(place, empty, kind, JSON.parse(event.data)));
  for (const kind of CHANGES) source.addEventListener(kind, () => changed());
  return source;
}

export function add(place, empty, kind, facts, at = Date.now() / 1000) {
  empty.hidden = true;
  place.prepend(element("li", { class: kind }, element("time", {}, clock(at)), TOLD[kind](facts)));
  while (place.children.length > KEPT) place.lastElementChild.remove();
}
