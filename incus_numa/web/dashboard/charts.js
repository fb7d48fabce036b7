// Heat maps: distances between nodes, and the load of each node over the last hour.

import { element, heat, number, shape } from "./words.js";

export function drawDistances(place, topology) {
  const known = topology.nodes.flatMap((node) => Object.values(node.distances || {}));
  if (!known.length) {
    place.replaceChildren(element("p", { class: "empty" }, "The machine does not tell them."));
    return;
  }
  const steps = [...new Set(known)].sort((a, b) => a - b);
  const size = topology.nodes.length > 32 ? 12 : 22;
  const edge = 26;
  const all = edge + size * topology.nodes.length;
  const drawn = shape("svg", { width: all, height: all, role: "img", "aria-label": `Distances from ${steps[0]} to ${steps[steps.length - 1]}; the table below has the numbers` });
  topology.nodes.forEach((from, y) => {
    if (size > 12 || y % 4 === 0) {
      drawn.append(shape("text", { x: 0, y: edge + y * size + size * 0.7, class: "dim" }, `${from.id}`), shape("text", { x: edge + y * size + 2, y: 14, class: "dim" }, `${from.id}`));
    }
    topology.nodes.forEach((to, x) => {
      const distance = (from.distances || {})[to.id];
      const level = distance === undefined ? "hot-none" : `far${Math.min(3, Math.round((3 * steps.indexOf(distance)) / Math.max(1, steps.length - 1)))}`;
      drawn.append(shape("rect", { class: level, x: edge + x * size, y: edge + y * size, width: size - 1, height: size - 1 }, shape("title", {}, `${from.id} to ${to.id}: ${distance ?? "unknown"}`)));
    });
  });
  place.replaceChildren(drawn, element("details", {}, element("summary", {}, "As a table"), distanceTable(topology)));
}

function distanceTable(topology) {
  const head = element("tr", {}, element("th", { scope: "col" }, "Node"), ...topology.nodes.map((node) => element("th", { scope: "col", class: "n" }, `${node.id}`)));
  const rows = topology.nodes.map((from) => element("tr", {}, element("th", { scope: "row" }, `${from.id}`), ...topology.nodes.map((to) => element("td", { class: "n" }, `${(from.distances || {})[to.id] ?? "–"}`))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}

// `history` has a list of times, and for each node a list of loads, null where nothing was measured.
export function drawLoad(place, history) {
  const nodes = Object.keys(history.load).map(Number).sort((a, b) => a - b);
  if (!history.at.length || !nodes.length) {
    place.replaceChildren(element("p", { class: "empty" }, "Nothing was measured yet: rebalance.enabled measures load, a first value takes two intervals."));
    return;
  }
  const high = nodes.length > 32 ? 6 : 10;
  const cells = Math.max(1, Math.ceil(3600 / history.step_s));
  const wide = Math.max(3, Math.min(12, (place.clientWidth - 70) / cells));
  const edge = 34;
  const drawn = shape("svg", { width: edge + cells * wide + 30, height: nodes.length * high + 22, role: "img", "aria-label": tellLoad(history, nodes) });
  const missing = cells - history.at.length;
  nodes.forEach((node, row) => {
    if (nodes.length <= 32 || row % 4 === 0) drawn.append(shape("text", { x: 0, y: row * high + 9, class: "dim" }, `${node}`));
    history.load[node].forEach((load, at) => {
      const level = heat(load);
      if (level === null) return;
      drawn.append(shape("rect", { class: `hot${level}`, x: edge + (missing + at) * wide, y: row * high, width: wide, height: high - 1 }, shape("title", {}, `node ${node}, ${clock(history.at[at])}: ${number(load)}`)));
    });
  });
  const foot = nodes.length * high + 14;
  drawn.append(shape("text", { x: edge, y: foot, class: "dim" }, "an hour ago"), shape("text", { x: edge + cells * wide - 20, y: foot, class: "dim" }, "now"));
  place.replaceChildren(drawn);
}

function tellLoad(history, nodes) {
  const last = nodes.map((node) => [history.load[node].at(-1), node]).filter(([load]) => load !== null && load !== undefined).sort((a, b) => b[0] - a[0]);
  return last.length ? `Load of ${nodes.length} nodes; now node ${last[0][1]} is the most loaded with ${number(last[0][0])}` : "Load of the nodes";
}

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
