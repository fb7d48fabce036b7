// Draws the machine: a column for each node with its CPUs, load and memory, and below it the instances as spans.

import { bytes, heat, ids, number, part, shape } from "./words.js";

// Where each CPU was when it was last online: the kernel does not say it of one that is offline.
const places = new Map();
const GAP = 6;
const LANE = 17;

export function drawMachine(place, { topology, nodes, instances }, open) {
  const width = Math.max(30, Math.min(84, Math.floor((place.clientWidth - 60) / Math.max(1, topology.nodes.length)) - GAP));
  const step = width + GAP;
  const state = cpuStates(topology, instances);
  const order = new Map(topology.nodes.map((node, at) => [node.id, at]));
  const most = Math.max(1, ...topology.nodes.map((node) => (state.byNode.get(node.id) || []).length));
  const across = [16, 8, 4].find((count) => count <= Math.max(4, most / 2) && width / count >= 5) || 2;
  const side = width / across;
  const rows = Math.ceil(most / across);
  const top = 18;
  const bars = top + rows * side + 8;
  const first = bars + 46;
  const lanes = pack(instances, order);
  const high = first + lanes.count * LANE + 6;
  const drawn = shape("svg", { width: topology.nodes.length * step + 4, height: high, role: "group", "aria-label": `${topology.nodes.length} nodes` });
  const byId = new Map(nodes.map((one) => [one.node, one]));
  topology.nodes.forEach((node, at) => drawn.append(drawNode(node, byId.get(node.id), { x: at * step + 2, width, across, side, top, bars, state })));
  for (const one of lanes.spans) drawn.append(drawSpan(one, { step, width, y: first + one.lane * LANE }, open));
  place.replaceChildren(drawn);
}

// Which CPUs each node has, and how many instances each CPU serves.
function cpuStates(topology, instances) {
  const online = new Set(ids(topology.online));
  const isolated = new Set(ids(topology.isolated));
  const weight = new Map();
  for (const one of instances) {
    const own = ids(one.cpus);
    const share = own.length ? Math.min(1, (one.vcpus || 1) / own.length) : 0;
    for (const cpu of own) weight.set(cpu, (weight.get(cpu) || 0) + share);
  }
  for (const cpu of topology.cpus) if (online.has(cpu.id)) places.set(cpu.id, cpu.node);
  const byNode = new Map();
  for (const [cpu, node] of [...places].sort((a, b) => a[0] - b[0])) {
    if (!byNode.has(node)) byNode.set(node, []);
    byNode.get(node).push(cpu);
  }
  return { online, isolated, weight, byNode };
}

function drawNode(node, row, { x, width, across, side, top, bars, state }) {
  const cpus = state.byNode.get(node.id) || [];
  const group = shape("g", { role: "img", "aria-label": tellNode(node, row, cpus.length) });
  group.append(shape("title", {}, tellNode(node, row, cpus.length)), shape("text", { x, y: 12 }, width < 44 ? `${node.id}` : `node ${node.id}`));
  cpus.forEach((cpu, at) => {
    const load = state.weight.get(cpu) || 0;
    const kind = !state.online.has(cpu) ? "offline" : state.isolated.has(cpu) ? "isolated" : `c${heat(load)}`;
    const place = { x: x + (at % across) * side, y: top + Math.floor(at / across) * side, width: side, height: side, rx: 1 };
    const busy = row && row.cpu_busy ? row.cpu_busy[cpu] : undefined;
    const told = `CPU ${cpu}: ${kind.startsWith("c") ? `${number(load)} vCPUs` : kind}${busy === undefined ? "" : `, ${part(busy)} busy`}`;
    group.append(shape("rect", { class: `cpu ${kind}`, ...place }, shape("title", {}, told)));
    if (busy > 0.02 && kind !== "offline") group.append(shape("rect", { class: "busy-part", x: place.x + 1, y: place.y + side - 1 - busy * (side - 2), width: Math.max(1, side / 3), height: busy * (side - 2) }));
  });
  const committed = row ? row.load : null;
  const measured = row ? row.measured_load : null;
  group.append(...bar(x, bars, width, measured ?? 0, committed));
  const used = row && row.memory_bytes && row.free_bytes !== null ? 1 - row.free_bytes / row.memory_bytes : 0;
  group.append(...bar(x, bars + 16, width, used, null));
  group.append(shape("text", { x, y: bars + 40, class: "dim" }, width < 44 ? number(measured ?? committed, 1) : row ? bytes(row.free_bytes) : ""));
  return group;
}

// A part of the width, full at 1, and a frame for what is committed.
function bar(x, y, width, value, frame) {
  const made = [shape("rect", { class: "bar-back", x, y, width, height: 10, rx: 2 })];
  made.push(shape("rect", { class: value > 1 ? "bar over" : "bar", x, y, width: width * Math.min(1, Math.max(0, value)), height: 10, rx: 2 }));
  if (frame !== null && frame !== undefined) made.push(shape("rect", { class: "bar committed", x, y, width: Math.max(1, width * Math.min(1, frame)), height: 10, rx: 2 }));
  return made;
}

function tellNode(node, row, count) {
  if (!row) return `node ${node.id}`;
  const load = row.measured_load === null ? "" : `, load ${number(row.measured_load)} measured`;
  return `node ${node.id}: ${count} CPUs, load ${number(row.load)} committed${load}; ${bytes(row.free_bytes)} of ${bytes(row.memory_bytes)} free`;
}

// Spans over neighbouring columns, as many lanes as it takes; an instance on scattered nodes has a span for each run.
function pack(instances, order) {
  const ends = [];
  const spans = [];
  const runs = instances.flatMap((one) => runsOf(one, order));
  runs.sort((a, b) => b.last - b.first - (a.last - a.first) || a.first - b.first || a.instance.name.localeCompare(b.instance.name));
  const taken = [];
  for (const run of runs) {
    let lane = 0;
    while ((taken[lane] || []).some((other) => run.first <= other.last && other.first <= run.last)) lane++;
    (taken[lane] ||= []).push(run);
    ends[lane] = true;
    spans.push({ ...run, lane });
  }
  return { spans, count: ends.length };
}

function runsOf(instance, order) {
  const places = ids(instance.nodes).map((node) => order.get(node)).filter((at) => at !== undefined).sort((a, b) => a - b);
  const runs = [];
  for (const at of places) {
    const last = runs[runs.length - 1];
    if (last && at === last.last + 1) last.last = at;
    else runs.push({ instance, first: at, last: at });
  }
  return runs;
}

function drawSpan({ instance, first, last }, { step, width, y }, open) {
  const long = (last - first) * step + width;
  const kind = instance.state.startsWith("refused") ? "refused" : instance.state;
  const told = `${instance.name}, ${instance.vcpus ?? "any number of"} vCPUs, ${instance.state}`;
  const group = shape("g", { class: `span ${kind}`, role: "button", tabindex: 0, "aria-label": `${told}: explain` });
  const room = Math.floor((long - 6) / 6.2);
  const name = instance.name.length <= room ? instance.name : room > 2 ? `…${instance.name.slice(1 - room)}` : "";
  group.append(shape("title", {}, told), shape("rect", { x: first * step + 2, y, width: long, height: LANE - 2, rx: 3 }), shape("text", { x: first * step + 6, y: y + 11 }, name));
  group.addEventListener("click", () => open(instance));
  group.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open(instance);
    }
  });
  return group;
}

export function drawLegend(place) {
  const marks = [["cpu c0", "no instance"], ["cpu c1", "in use"], ["cpu c2", "full"], ["cpu c3", "more vCPUs than CPUs"], ["cpu isolated", "isolated"], ["cpu offline", "offline"], ["busy-part", "in a CPU: busy"], ["bar", "load measured, frame: committed; below: memory in use"]];
  place.replaceChildren(...marks.map(([kind, text]) => {
    const item = document.createElement("li");
    item.append(shape("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, shape("rect", { class: kind, width: 10, height: 10, rx: 1 })), text);
    return item;
  }));
}
