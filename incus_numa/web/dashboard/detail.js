// What is known about one instance, as `incus-numa explain` tells it.

import { ask } from "./api.js";
import { bytes, element, nodesOf, number, part } from "./words.js";

export async function openDetail(dialog, instance) {
  const body = dialog.querySelector("#detail-body");
  dialog.querySelector("h2").textContent = instance.project === "default" ? instance.name : `${instance.name} in project ${instance.project}`;
  body.replaceChildren(element("p", { class: "dim" }, "asking…"));
  if (!dialog.open) dialog.showModal();
  try {
    const query = new URLSearchParams({ project: instance.project });
    body.replaceChildren(...tell(await ask(`instances/${encodeURIComponent(instance.name)}?${query}`)));
  } catch (problem) {
    body.replaceChildren(element("p", { class: "errors" }, problem.message));
  }
}

function tell(facts) {
  const memory = Object.entries(facts.memory_by_node || {}).map(([node, size]) => `${bytes(size)} on node ${node}`).join(", ");
  const lines = [
    ["state", facts.state],
    ["why", facts.why],
    ["needs", needs(facts)],
    ["has", `${nodesOf(facts.has_nodes)}, CPUs ${facts.has_cpus || "not limited"}, memory ${facts.has_mems ? `bound to ${nodesOf(facts.has_mems)}` : "not bound"}`],
    ["memory", memory],
    ["locality", facts.locality === null || facts.locality === undefined ? "" : `${part(facts.locality)} of its memory is on its nodes`],
    ["decision", facts.decision ? `${nodesOf(facts.decision.nodes)}, CPUs ${facts.decision.cpus}` : ""],
    ["placed anew", facts.placed_anew ? `${facts.placed_anew.nodes ? nodesOf(facts.placed_anew.nodes) : "nowhere"}: ${facts.placed_anew.why}` : ""],
    ["proof", facts.proof ? facts.proof.text : ""],
    ["a pass would", (facts.a_pass_would || []).join("; ") || (facts.managed ? "change nothing" : "")],
    ["load", facts.load && facts.load.used_cpus !== null ? `${number(facts.load.used_cpus)} CPUs busy` : ""],
    ["by load", facts.rebalancer ? facts.rebalancer.says : ""],
    ["beware", facts.shared_with || ""],
  ];
  const found = element("dl", { class: "facts" });
  for (const [name, text] of lines) if (text) found.append(element("dt", {}, name), element("dd", {}, text));
  return [found, ...considered(facts), ...moves(facts)];
}

function needs(facts) {
  const cpus = facts.vcpus === null ? "any number of CPUs" : `${facts.vcpus} vCPUs`;
  return `${cpus}, ${facts.memory_bytes === null ? "unknown memory" : bytes(facts.memory_bytes)}; policy ${facts.policy}, memory binding ${facts.memory_binding}`;
}

function considered(facts) {
  const options = (facts.rebalancer && facts.rebalancer.considered) || [];
  if (!options.length) return [];
  return [table("Considered", ["Nodes", "Gain", "Price", "Result"], options.map((one) => [one.nodes, number(one.gain, 3), number(one.price, 3), one.hold ? `no (${one.hold}): ${one.detail || ""}` : "pays"]))];
}

function moves(facts) {
  if (!(facts.last_moves || []).length) return [];
  return [table("Last moves", ["When", "From", "To", "Result", "Why"], facts.last_moves.map((one) => [one.at || "", one.from, one.to, one.result, one.reason]))];
}

export function table(title, heads, rows) {
  return element(
    "div",
    { class: "scroll" },
    element(
      "table",
      {},
      element("caption", {}, title),
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, `${cell}`))))),
    ),
  );
}
