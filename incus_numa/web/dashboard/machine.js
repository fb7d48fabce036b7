// Draws the machine: a column for each node with its CPUs, load and memory, and below it the instances as spans.

import { Spans } from "./spans.js";
import { bytes, element, ids, list, marks, number, part, shape, wide } from "./words.js";

// Where each CPU was when it was last online: the kernel does not say it of one that is offline.
const places = new Map();
const GAP = 6;
const LANE = 17;
const LEFT = 56;
// The CPUs of a node are no higher than this where that leaves 16 of them beside each other.
const HIGHEST = 70;
const FULL = 0.6;
const OVER = 1.001;
const spans = new Spans();

export function drawMachine(place, { topology, nodes, instances }, open) {
  const width = Math.max(40, Math.min(120, Math.floor((place.clientWidth - LEFT - 12) / Math.max(1, topology.nodes.length)) - GAP));
  const state = cpuStates(topology, instances);
  const order = new Map(topology.nodes.map((node, at) => [node.id, at]));
  const most = Math.max(1, ...topology.nodes.map((node) => (state.byNode.get(node.id) || []).length));
  const sideOf = (across) => Math.min(21, width / across);
  const across = [4, 8, 16].find((count) => Math.ceil(most / count) * sideOf(count) <= HIGHEST) || 16;
  const side = sideOf(across);
  const byId = new Map(nodes.map((one) => [one.node, one]));
  // The amount stays away as a whole where one would run into the next.
  const free = nodes.map((one) => bytes(one.free_bytes));
  const hasFree = free.every((text) => wide(text) < width + GAP);
  const top = 18;
  const bars = top + Math.ceil(most / across) * side + 8;
  const first = bars + (hasFree ? 46 : 32);
  const lanes = spans.pack(instances, order);
  const drawn = shape("svg", { width: LEFT + topology.nodes.length * (width + GAP) + 4, height: first + lanes * LANE + 6, role: "group", "aria-label": `${topology.nodes.length} nodes with ${instances.length} instances: arrow keys lead from one to the next, Enter explains` });
  drawn.append(...sideNotes([[12, width < 44 ? "node" : ""], [bars + 9, "load"], [bars + 25, "memory"], [bars + 40, hasFree ? "free" : ""]]));
  topology.nodes.forEach((node, at) => drawn.append(drawNode(node, byId.get(node.id), { x: LEFT + at * (width + GAP), width, across, side, top, bars, hasFree, state })));
  spans.draw(drawn, { left: LEFT, step: width + GAP, width, top: first, lane: LANE }, open);
  spans.keep(place, () => place.replaceChildren(drawn, ...drawOffline(state, place.clientWidth)));
}

export const focusSpan = (place, key) => spans.focus(place, key);

function sideNotes(known) {
  return known.filter(([, text]) => text).map(([y, text]) => shape("text", { x: 2, y, class: "dim" }, text));
}

// Which CPUs each node has, and what instances claim of each CPU, by the rule of facts/cpu_use.py.
function cpuStates(topology, instances) {
  const online = new Set(ids(topology.online));
  const isolated = new Set(ids(topology.isolated));
  const offline = new Set(ids(topology.offline));
  for (const cpu of topology.cpus) if (online.has(cpu.id)) places.set(cpu.id, cpu.node);
  const byNode = new Map();
  for (const [cpu, node] of [...places].sort((a, b) => a[0] - b[0])) {
    if (!online.has(cpu) && !offline.has(cpu)) continue;
    if (!byNode.has(node)) byNode.set(node, []);
    byNode.get(node).push(cpu);
  }
  const apart = [...offline].filter((cpu) => !places.has(cpu));
  return { online, isolated, byNode, apart, use: spread(topology, instances, { online, isolated }) };
}

function spread(topology, instances, { online, isolated }) {
  const open = new Map(topology.nodes.map((node) => [node.id, ids(node.cpus).filter((cpu) => !isolated.has(cpu))]));
  const everywhere = [...online].filter((cpu) => !isolated.has(cpu)).length;
  const use = new Map();
  for (const one of instances) {
    const own = one.cpus ? ids(one.cpus) : ids(one.nodes).flatMap((node) => open.get(node) || []);
    const isLimited = one.vcpus !== null;
    if (!isLimited && own.filter((cpu) => online.has(cpu) && !isolated.has(cpu)).length === everywhere) continue;
    for (const cpu of own) {
      const had = use.get(cpu) || { vcpus: 0, limited: 0, unlimited: 0 };
      use.set(cpu, { vcpus: had.vcpus + (isLimited ? Math.min(1, one.vcpus / own.length) : 0), limited: had.limited + isLimited, unlimited: had.unlimited + !isLimited });
    }
  }
  return use;
}

const level = (use) => (!use ? 0 : use.vcpus > OVER ? 3 : use.vcpus >= FULL ? 2 : 1);

function drawNode(node, row, { x, width, across, side, top, bars, hasFree, state }) {
  const cpus = state.byNode.get(node.id) || [];
  const told = tellNode(node, row, cpus.filter((cpu) => !state.online.has(cpu)));
  const group = shape("g", { role: "img", "aria-label": told });
  group.append(shape("title", {}, told), shape("text", { x, y: 12 }, width < 44 ? `${node.id}` : `node ${node.id}`));
  cpus.forEach((cpu, at) => group.append(...drawCpu(cpu, { x: x + (at % across) * side, y: top + Math.floor(at / across) * side, side, busy: row?.cpu_busy?.[cpu], state })));
  const committed = row ? row.load : null;
  const measured = row ? row.measured_load : null;
  group.append(...bar(x, bars, width, measured ?? 0, committed));
  const used = row && row.memory_bytes && row.free_bytes !== null ? 1 - row.free_bytes / row.memory_bytes : 0;
  group.append(...bar(x, bars + 16, width, used, null));
  if (hasFree && row) group.append(shape("text", { x, y: bars + 40, class: "dim" }, bytes(row.free_bytes)));
  return group;
}

function drawCpu(cpu, { x, y, side, busy, state }) {
  const use = state.use.get(cpu);
  const isOnline = state.online.has(cpu);
  const kind = !isOnline ? "offline" : state.isolated.has(cpu) ? "isolated" : `c${level(use)}`;
  const told = [kind === "offline" || kind === "isolated" ? kind : tellUse(use), isOnline && busy !== undefined ? `${part(busy)} busy` : ""].filter(Boolean).join(", ");
  const made = [shape("rect", { class: `cpu ${kind}`, x, y, width: side, height: side, rx: 1 }, shape("title", {}, `CPU ${cpu}: ${told}`))];
  if (busy > 0.02 && isOnline) made.push(shape("rect", { class: "busy-part", x: x + 1, y: y + side - 1 - busy * (side - 2), width: Math.max(1, side / 3), height: busy * (side - 2) }));
  return made;
}

function tellUse(use) {
  if (!use) return "no instance";
  const told = use.limited ? [`${number(use.vcpus)} vCPUs of ${use.limited} instance${use.limited === 1 ? "" : "s"}`] : [];
  if (use.unlimited) told.push(`${use.unlimited} without limits.cpu`);
  return told.join(", ");
}

// A part of the width, full at 1, and a frame for what is committed.
function bar(x, y, width, value, frame) {
  const made = [shape("rect", { class: "bar-back", x, y, width, height: 10, rx: 2 })];
  made.push(shape("rect", { class: value > 1 ? "bar over" : "bar", x, y, width: width * Math.min(1, Math.max(0, value)), height: 10, rx: 2 }));
  if (frame !== null && frame !== undefined) made.push(shape("rect", { class: "bar committed", x, y, width: Math.max(1, width * Math.min(1, frame)), height: 10, rx: 2 }));
  return made;
}

function tellNode(node, row, offline) {
  const cpus = `${ids(node.cpus).length} CPUs${offline.length ? ` and ${offline.length} offline` : ""}`;
  if (!row) return `node ${node.id}: ${cpus}`;
  const load = row.measured_load === null ? "" : `, load ${number(row.measured_load)} measured`;
  return `node ${node.id}: ${cpus}, load ${number(row.load)} committed${load}; ${bytes(row.free_bytes)} of ${bytes(row.memory_bytes)} free`;
}

// CPUs that were offline before this page was opened: nobody says to which node they belong.
function drawOffline({ apart }, room) {
  if (!apart.length) return [];
  const side = 12;
  const across = Math.max(8, Math.floor((room - 4) / side));
  const told = `Offline, node unknown: CPUs ${list(apart)}`;
  const drawn = shape("svg", { width: across * side + 2, height: Math.ceil(apart.length / across) * side + 2, role: "img", "aria-label": told });
  apart.forEach((cpu, at) => drawn.append(shape("rect", { class: "cpu offline", x: 1 + (at % across) * side, y: 1 + Math.floor(at / across) * side, width: side - 2, height: side - 2 }, shape("title", {}, `CPU ${cpu}: offline`))));
  return [element("p", { class: "dim apart" }, told), drawn];
}

export function drawLegend(place) {
  const known = [["cpu c0", "no instance"], ["cpu c1", "in use"], ["cpu c2", "full"], ["cpu c3", "more vCPUs than CPUs"], ["cpu isolated", "isolated"], ["cpu offline", "offline"], ["busy-part", "in a CPU: busy"], ["bar", "load measured, frame: committed; below: memory in use"]];
  const rule = "An instance's vCPUs count evenly on its CPUs; one without limits.cpu claims none, and colours none if it may run on all.";
  place.replaceChildren(...marks(known), element("li", {}, rule));
}
