// The page: what is known is asked for when it changes, and every few seconds besides.

import { ask, now } from "./api.js";
import { drawDistances, drawLoad } from "./charts.js";
import { openDetail } from "./detail.js";
import { follow } from "./events.js";
import { drawLegend, drawMachine, focusSpan } from "./machine.js";
import { openPolicy, openPreview } from "./policy.js";
import { bytes, element, number, part } from "./words.js";

const EVERY_MS = 10000;
const SETTLE_MS = 400;
const MOST_ROWS = 200;
// Below it nobody is busy, and how uneven that is means nothing.
const LEAST_LOAD = 0.1;
const at = (id) => document.getElementById(id);
const known = { topology: null, nodes: [], instances: [] };
let waiting = 0;
let isListening = true;
let opener = () => {};

async function refresh() {
  try {
    const [status, topology, nodes, instances, history] = await Promise.all([ask("status"), ask("topology"), ask("nodes"), ask("instances"), ask("history")]);
    Object.assign(known, { status, topology, nodes, instances, history });
    tellServer();
    tellSummary(status);
    draw();
    at("trouble").hidden = true;
  } catch (problem) {
    at("trouble").textContent = `What is shown may be old: ${problem.message}`;
    at("trouble").hidden = false;
  }
}

function draw() {
  if (!known.topology) return;
  drawMachine(at("machine"), known, (instance, key) => explain(instance, () => focusSpan(at("machine"), key)));
  drawLoad(at("load"), known.history, now());
  const distances = JSON.stringify([at("distances").clientWidth, ...known.topology.nodes.map((node) => node.distances)]);
  if (at("distances").dataset.drawn !== distances) {
    drawDistances(at("distances"), known.topology);
    at("distances").dataset.drawn = distances;
  }
  drawRows();
}

function tellServer() {
  const server = known.status?.server;
  if (!server) return;
  const product = server.product ? `${server.product} ${server.version}${server.member ? `, member ${server.member}` : ""}${server.connected ? "" : ": not connected"}` : "no server yet";
  const told = isListening ? product : `${product}; nothing is heard of events, trying again`;
  // A screen reader tells what is set, also where it is the same.
  if (at("server").textContent !== told) at("server").textContent = told;
  at("server").classList.toggle("lost", !server.connected || !isListening);
}

function tellSummary(status) {
  const isBusy = known.nodes.some((node) => (node.measured_load ?? 0) >= LEAST_LOAD);
  const facts = [["nodes", status.nodes], ["CPUs", status.cpus], ["instances", status.instances.running], ["managed", status.instances.managed], ["refused", status.instances.refused], ["imbalance", number(isBusy ? status.imbalance : null)], ["policy from", status.policy_source]];
  at("summary").replaceChildren(...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, `${value}`))));
}

function drawRows() {
  const wanted = at("find").value.trim().toLowerCase();
  const found = known.instances.filter((one) => `${one.name} ${one.project} ${one.state}`.toLowerCase().includes(wanted));
  const shown = found.slice(0, MOST_ROWS);
  at("found").textContent = found.length > shown.length ? `${shown.length} of ${found.length}` : `${found.length}`;
  const focused = document.activeElement?.dataset?.key;
  at("instances").tBodies[0].replaceChildren(...shown.map(drawRow));
  if (focused) focusRow(focused);
}

const focusRow = (key) => document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });

// What was clicked may be drawn anew until the dialog is closed, so that the browser cannot give the focus back to it.
function explain(instance, back) {
  opener = back;
  openDetail(at("detail"), instance);
}

function drawRow(one) {
  const button = element("button", { type: "button", "data-key": `${one.project}/${one.name}` }, one.name);
  button.addEventListener("click", () => explain(one, () => focusRow(button.dataset.key)));
  const cells = [one.project, one.type];
  const numbers = [one.vcpus ?? "any", bytes(one.memory_bytes)];
  return element(
    "tr",
    { class: one.state.startsWith("refused") ? "refused" : null },
    element("th", { scope: "row" }, button, one.project === "default" ? null : element("span", { class: "less" }, ` in ${one.project}`)),
    ...cells.map((text) => element("td", { class: "more" }, text)),
    ...numbers.map((text) => element("td", { class: "n more" }, `${text}`)),
    element("td", {}, one.nodes || "–"),
    element("td", { class: "n" }, number(one.load_cpus)),
    element("td", { class: "n more" }, part(one.locality)),
    element("td", {}, one.state),
  );
}

// Many changes that come together are one refresh.
function changed() {
  clearTimeout(waiting);
  waiting = setTimeout(refresh, SETTLE_MS);
}

function lost(is) {
  isListening = !is;
  tellServer();
  if (!is) changed();
}

drawLegend(at("legend"));
at("find").addEventListener("input", drawRows);
at("policy-open").addEventListener("click", () => openPolicy(at("policy")));
at("preview-open").addEventListener("click", () => openPreview(at("preview")));
at("detail").addEventListener("close", () => {
  if (document.activeElement === document.body || at("detail").contains(document.activeElement)) opener();
});
addEventListener("resize", changed);
await refresh();
follow(at("events"), at("events-empty"), { changed, lost });
setInterval(refresh, EVERY_MS);
