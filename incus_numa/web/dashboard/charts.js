// Heat maps: distances between nodes, and the load of each node over the last hour.

import { element, heat, marks, number, shape, time, wide } from "./words.js";

const HOUR_S = 3600;
const QUARTER_S = 900;
// The font of the numbers in cells, in pixels, as in the style sheet.
const SMALL = 10;

export function drawDistances(place, topology) {
  const known = topology.nodes.flatMap((node) => Object.values(node.distances || {}));
  if (!known.length) {
    place.replaceChildren(element("p", { class: "empty" }, "The machine does not tell them."));
    return;
  }
  const steps = [...new Set(known)].sort((a, b) => a - b);
  const level = (distance) => (distance === undefined ? "hot-none" : `far${Math.min(3, Math.round((3 * steps.indexOf(distance)) / Math.max(1, steps.length - 1)))}`);
  const edge = 26;
  const size = Math.max(8, Math.min(26, Math.floor((place.clientWidth - edge - 2) / topology.nodes.length)));
  const hasNumbers = steps.every((one) => wide(`${one}`, SMALL) + 2 < size);
  const every = Math.ceil(15 / size);
  const all = edge + size * topology.nodes.length;
  const drawn = shape("svg", { width: all, height: all, role: "img", "aria-label": `Distances from ${steps[0]} to ${steps[steps.length - 1]}; the table below has the numbers` });
  topology.nodes.forEach((from, y) => {
    if (y % every === 0) {
      drawn.append(shape("text", { x: 0, y: edge + y * size + size / 2 + 4, class: "dim" }, `${from.id}`), shape("text", { x: edge + y * size + 2, y: 14, class: "dim" }, `${from.id}`));
    }
    topology.nodes.forEach((to, x) => {
      const distance = (from.distances || {})[to.id];
      const kind = level(distance);
      drawn.append(shape("rect", { class: kind, x: edge + x * size, y: edge + y * size, width: size - 1, height: size - 1 }, shape("title", {}, `${from.id} to ${to.id}: ${distance ?? "unknown"}`)));
      if (hasNumbers) drawn.append(shape("text", { class: `in ${kind}`, x: edge + (x + 0.5) * size, y: edge + (y + 0.5) * size + 3 }, `${distance ?? "–"}`));
    });
  });
  const isOpen = Boolean(place.querySelector("details[open]"));
  place.replaceChildren(drawn, scaleOf(steps, level), element("details", { open: isOpen ? "" : null }, element("summary", {}, "As a table"), distanceTable(topology)));
}

function scaleOf(steps, level) {
  const kinds = [...new Set(steps.map(level))];
  const own = kinds.map((kind) => steps.filter((one) => level(one) === kind));
  return element("ul", { class: "legend", "aria-label": "Scale" }, ...marks(kinds.map((kind, at) => [kind, own[at].length > 1 ? `${own[at][0]} to ${own[at].at(-1)}` : `${own[at][0]}`])));
}

function distanceTable(topology) {
  const head = element("tr", {}, element("th", { scope: "col" }, "Node"), ...topology.nodes.map((node) => element("th", { scope: "col", class: "n" }, `${node.id}`)));
  const rows = topology.nodes.map((from) => element("tr", {}, element("th", { scope: "row" }, `${from.id}`), ...topology.nodes.map((to) => element("td", { class: "n" }, `${(from.distances || {})[to.id] ?? "–"}`))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}

// `history` has a list of times, and for each node a list of loads, null where nothing was measured; `now` is the
// host's time. A sample is drawn over the time before it; where more than one is missing, nothing is.
export function drawLoad(place, history, now) {
  const nodes = Object.keys(history.load).map(Number).sort((a, b) => a - b);
  if (!history.at.length || !nodes.length) {
    place.replaceChildren(element("p", { class: "empty" }, "Nothing was measured yet: rebalance.enabled measures load, a first value takes two intervals."));
    return;
  }
  const high = nodes.length > 32 ? 6 : 12;
  const edge = 34;
  const long = Math.max(200, place.clientWidth - edge - 4);
  const x = (at) => edge + long * Math.min(1, Math.max(0, 1 - (now - at) / HOUR_S));
  const usual = usualStep(history);
  const begins = history.at.map((at, one) => (one && at - history.at[one - 1] <= 2 * usual ? history.at[one - 1] : at - usual));
  const isFresh = now - history.at.at(-1) <= 2 * usual;
  const drawn = shape("svg", { width: edge + long + 2, height: nodes.length * high + 20, role: "img", "aria-label": tellLoad(history, nodes, isFresh) });
  nodes.forEach((node, row) => {
    if (nodes.length <= 32 || row % 4 === 0) drawn.append(shape("text", { x: 0, y: row * high + 9, class: "dim" }, `${node}`));
    history.load[node].forEach((load, one) => {
      const [left, right, level] = [x(begins[one]), x(history.at[one]), heat(load)];
      if (level === null || right <= left) return;
      drawn.append(shape("rect", { class: `hot${level}`, x: left.toFixed(2), y: row * high, width: (right - left).toFixed(2), height: high - 1 }, shape("title", {}, `node ${node}, ${time(history.at[one])}: ${number(load)}`)));
    });
  });
  drawn.append(...drawTicks(now, x, nodes.length * high, isFresh));
  const told = isFresh ? [] : [element("p", { class: "dim" }, `Last measured at ${time(history.at.at(-1))}.`)];
  const scale = marks([["hot0", "under 0.05 of its CPUs busy"], ["hot1", "under 0.6"], ["hot2", "up to 1"], ["hot3", "wants more than it has"], ["hot-none", "not measured"]]);
  place.replaceChildren(drawn, ...told, element("ul", { class: "legend", "aria-label": "Scale" }, ...scale));
}

// Samples come when a pass by load ends, so that how far apart they are depends on the settings.
function usualStep(history) {
  const apart = history.at.slice(1).map((at, one) => at - history.at[one]).sort((a, b) => a - b);
  return Math.max(history.step_s, apart.length ? apart[Math.floor(apart.length / 2)] : 0);
}

function drawTicks(now, x, top, isFresh) {
  return [0, 1, 2, 3, 4].flatMap((quarter) => {
    const at = now - HOUR_S + quarter * QUARTER_S;
    const text = quarter < 4 ? `-${60 - 15 * quarter} min` : isFresh ? "now" : time(now).slice(11);
    const place = ["first", "", "", "", "last"][quarter];
    return [shape("line", { class: "tick", x1: x(at), x2: x(at), y1: top, y2: top + 4 }), shape("text", { class: `dim mark ${place}`, x: x(at), y: top + 15 }, text)];
  });
}

function tellLoad(history, nodes, isFresh) {
  const last = nodes.map((node) => [history.load[node].at(-1), node]).filter(([load]) => load !== null && load !== undefined).sort((a, b) => b[0] - a[0]);
  const when = isFresh ? "now" : `at ${time(history.at.at(-1))}`;
  return last.length ? `Load of ${nodes.length} nodes; ${when} node ${last[0][1]} is the most loaded with ${number(last[0][0])}` : "Load of the nodes";
}
