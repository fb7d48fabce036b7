// The page: what is known is asked for when it changes, and every few seconds besides.

import { ask } from "./api.js";
import { drawDistances, drawLoad } from "./charts.js";
import { openDetail } from "./detail.js";
import { add, follow } from "./events.js";
import { drawLegend, drawMachine } from "./machine.js";
import { openPolicy, openPreview } from "./policy.js";
import { bytes, element, number, part } from "./words.js";

const EVERY_MS = 10000;
const SETTLE_MS = 400;
const MOST_ROWS = 200;
const at = (id) => document.getElementById(id);
const known = { topology: null, nodes: [], instances: [] };
let waiting = 0;

async function refresh() {
  try {
    const [status, topology, nodes, instances, history] = await Promise.all([ask("status"), ask("topology"), ask("nodes"), ask("instances"), ask("history")]);
    Object.assign(known, { topology, nodes, instances, history });
    tellStatus(status);
    draw();
    at("trouble").hidden = true;
  } catch (problem) {
    at("trouble").textContent = `What is shown may be old: ${problem.message}`;
    at("trouble").hidden = false;
  }
}

function draw() {
  if (!known.topology) return;
  drawMachine(at("machine"), known, (instance) => openDetail(at("detail"), instance));
  drawLoad(at("load"), known.history);
  const distances = JSON.stringify(known.topology.nodes.map((node) => node.distances));
  if (at("distances").dataset.drawn !== distances) {
    drawDistances(at("distances"), known.topology);
    at("distances").dataset.drawn = distances;
  }
  drawRows();
}

function tellStatus(status) {
  const server = status.server;
  at("server").textContent = server.product ? `${server.product} ${server.version}${server.member ? `, member ${server.member}` : ""}${server.connected ? "" : ": not connected"}` : "no server yet";
  at("server").classList.toggle("lost", !server.connected);
  const facts = [["nodes", status.nodes], ["CPUs", status.cpus], ["instances", status.instances.running], ["managed", status.instances.managed], ["refused", status.instances.refused], ["imbalance", number(status.imbalance)], ["policy from", status.policy_source]];
  at("summary").replaceChildren(...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, `${value}`))));
}

function drawRows() {
  const wanted = at("find").value.trim().toLowerCase();
  const found = known.instances.filter((one) => `${one.name} ${one.project} ${one.state}`.toLowerCase().includes(wanted));
  const shown = found.slice(0, MOST_ROWS);
  at("found").textContent = found.length > shown.length ? `${shown.length} of ${found.length}` : `${found.length}`;
  const focused = document.activeElement?.dataset?.key;
  at("instances").tBodies[0].replaceChildren(...shown.map(drawRow));
  if (focused) document.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function drawRow(one) {
  const button = element("button", { type: "button", "data-key": `${one.project}/${one.name}` }, one.name);
  button.addEventListener("click", () => openDetail(at("detail"), one));
  const cells = [one.project, one.type];
  const numbers = [one.vcpus ?? "any", bytes(one.memory_bytes)];
  return element(
    "tr",
    { class: one.state.startsWith("refused") ? "refused" : null },
    element("th", { scope: "row" }, button),
    ...cells.map((text) => element("td", {}, text)),
    ...numbers.map((text) => element("td", { class: "n" }, `${text}`)),
    element("td", {}, one.nodes || "–"),
    element("td", { class: "n" }, number(one.load_cpus)),
    element("td", { class: "n" }, part(one.locality)),
    element("td", {}, one.state),
  );
}

// Many changes that come together are one refresh.
function changed() {
  clearTimeout(waiting);
  waiting = setTimeout(refresh, SETTLE_MS);
}

function lost(is) {
  if (!is) return changed();
  at("server").textContent = "the daemon does not answer; trying again";
  at("server").classList.add("lost");
}

async function showMoves() {
  for (const one of (await ask("moves?limit=20").catch(() => [])).reverse()) {
    add(at("events"), at("events-empty"), "move-made", one, Date.parse(one.at) / 1000);
  }
}

drawLegend(at("legend"));
at("find").addEventListener("input", drawRows);
at("policy-open").addEventListener("click", () => openPolicy(at("policy")));
at("preview-open").addEventListener("click", () => openPreview(at("preview")));
addEventListener("resize", changed);
await refresh();
await showMoves();
follow(at("events"), at("events-empty"), { changed, lost });
setInterval(refresh, EVERY_MS);
