// The policy that is in force, and a preview of what a rebalance would do. Changes are made where that is allowed.

import { ask, askWhole, token } from "./api.js";
import { table } from "./detail.js";
import { element, number } from "./words.js";

const READ_ONLY = "Nothing can be changed from here, as api.token_file is not set. On the host, `incus-numa policy set` changes the policy and `incus-numa rebalance` moves instances.";
// What each key may be, by table and key, as JSON schema.
let schema = null;

export async function openPolicy(dialog) {
  const body = dialog.querySelector("#policy-body");
  body.replaceChildren(element("p", { class: "dim" }, "asking…"));
  if (!dialog.open) dialog.showModal();
  try {
    const [found, document] = await Promise.all([askWhole("policy"), schema || ask("openapi.json")]);
    schema ||= Object.fromEntries(Object.entries(document.components.schemas.PolicyTables.properties).map(([name, own]) => [name, own.properties]));
    show(body, found.data, mayChange(found));
  } catch (problem) {
    body.replaceChildren(element("p", { class: "errors" }, problem.message));
  }
}

const mayChange = (found) => !/GET/.test(found.headers.get("Allow") || "") || /PUT/.test(found.headers.get("Allow"));

function show(body, policy, isOpen, told = "") {
  const form = element("form", {});
  const source = policy.source === "api" ? `Set here, over ${policy.file}.` : `As in ${policy.file}.`;
  const notes = [...(policy.left_out || []).map((one) => `Left out: ${one.key || "all that was set"}: ${one.why}`), ...(policy.warnings || [])];
  form.append(element("p", {}, source), ...notes.map((note) => element("p", { class: "errors" }, note)), ...Object.entries(policy.effective).map(([name, keys]) => drawTable(name, keys, policy, isOpen)));
  if (!isOpen) {
    form.prepend(element("p", { class: "read-only" }, READ_ONLY));
    body.replaceChildren(form);
    return;
  }
  const errors = element("ul", { class: "errors", role: "alert" });
  const said = element("span", { role: "status" }, told);
  const back = element("button", { type: "button" }, "Back to the file");
  back.disabled = policy.source !== "api";
  form.append(element("div", { class: "actions" }, errors, drawToken(), element("p", {}, element("button", { type: "submit" }, "Apply"), " ", back, " ", said)));
  const only = policy.etag ? { "If-Match": `"${policy.etag}"` } : {};
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    carryOut(body, errors, () => ask("policy", "PUT", read(form, policy), only), "In force now.");
  });
  back.addEventListener("click", () => carryOut(body, errors, () => ask("policy", "DELETE", undefined, only), "The file is in force again."));
  body.replaceChildren(form);
}

async function carryOut(body, errors, work, told) {
  errors.replaceChildren();
  const entered = body.querySelector("#token");
  token.set(entered.value.trim());
  try {
    show(body, await work(), true, told);
  } catch (problem) {
    const lines = problem.errors && problem.errors.length ? problem.errors : [explainProblem(problem)];
    errors.replaceChildren(...lines.map((line) => element("li", {}, line)));
    if (problem.status === 401) entered.focus();
  }
}

function explainProblem(problem) {
  if (problem.status === 412) return "The policy was changed by somebody else meanwhile: close this and open it again to see it.";
  if (problem.status !== 401) return problem.message;
  return token.get() ? "This is not the token of api.token_file: enter it again." : "Changes need a token: enter that of api.token_file, a file on the host, under Token.";
}

function drawTable(name, keys, policy, isOpen) {
  const own = element("fieldset", {}, element("legend", {}, name));
  for (const [key, value] of Object.entries(keys)) {
    const full = `${name}.${key}`;
    const isFixed = policy.fixed.includes(full);
    const changed = policy.changes[name] && key in policy.changes[name];
    const meaning = policy.meanings[full] || "";
    const line = element("div", { class: changed ? "setting changed" : "setting" });
    const input = drawInput(full, value, schema[name]?.[key] || {});
    input.disabled = isFixed || !isOpen;
    line.append(element("label", { for: full }, key), input, element("small", {}, isFixed ? `${meaning} Only in the file.` : meaning));
    own.append(line);
  }
  return own;
}

// Amounts may be numbers or text such as 8GiB, so that they are text here.
function drawInput(id, value, { type, enum: choices, minimum, maximum }) {
  if (typeof value === "boolean") {
    const input = element("input", { id, type: "checkbox" });
    input.checked = value;
    return input;
  }
  if (choices) {
    const input = element("select", { id }, ...choices.map((one) => element("option", {}, one)));
    input.value = value;
    return input;
  }
  if (type === "number" || type === "integer") {
    return element("input", { id, type: "number", required: "", step: type === "integer" ? 1 : "any", min: minimum, max: maximum, value });
  }
  return element("input", { id, type: "text", autocomplete: "off", value: textOf(value) });
}

const textOf = (value) => (typeof value === "string" || typeof value === "number" ? `${value}` : JSON.stringify(value));

// What differs from what is in force, over what had been changed before.
function read(form, policy) {
  const tables = structuredClone(policy.changes);
  for (const [name, keys] of Object.entries(policy.effective)) {
    for (const [key, value] of Object.entries(keys)) {
      const now = valueOf(form.elements[`${name}.${key}`], value);
      if (JSON.stringify(now) !== JSON.stringify(value)) (tables[name] ||= {})[key] = now;
    }
  }
  return tables;
}

function valueOf(input, before) {
  if (typeof before === "boolean") return input.checked;
  const text = input.value.trim();
  if (typeof before === "number") return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
  if (typeof before === "string") return input.value;
  try {
    // Tables may be entered as the file has them, too.
    return JSON.parse(text.replaceAll(/"\s*=/g, '":'));
  } catch {
    return text;
  }
}

function drawToken() {
  const input = element("input", { id: "token", type: "password", autocomplete: "off", value: token.get() });
  return element("div", { class: "setting" }, element("label", { for: "token" }, "Token"), input, element("small", {}, "That of api.token_file. It is kept until this tab is closed."));
}

export async function openPreview(dialog) {
  const body = dialog.querySelector("#preview-body");
  body.replaceChildren(element("p", { class: "dim" }, "asking…"));
  if (!dialog.open) dialog.showModal();
  try {
    const [plan, policy] = await Promise.all([ask("plan"), askWhole("policy")]);
    body.replaceChildren(...tellPlan(plan, mayChange(policy)));
  } catch (problem) {
    body.replaceChildren(element("p", { class: "errors" }, problem.message));
  }
}

function tellPlan(plan, isOpen) {
  const load = plan.by_load || { moves: [] };
  const found = [element("p", {}, load.why || "")];
  if (load.moves.length) {
    found.push(table("Moves that pay", ["Instance", "From", "To", "Gain", "Price", "Why"], load.moves.map((one) => [one.name, one.from, one.to, number(one.gain, 3), number(one.price, 3), one.reason])));
    found.push(isOpen ? drawMoving(load.moves.length) : element("p", { class: "dim" }, READ_ONLY));
  } else {
    found.push(element("p", {}, "Nothing moves by load."));
  }
  const steps = Object.entries(plan.steps || {});
  if (steps.length) found.push(table("What a pass would change", ["Instance", "Steps"], steps.map(([name, own]) => [name, own.join("; ")])));
  for (const one of plan.rejections || []) found.push(element("p", { class: "errors" }, `${one.name}: refused (${one.reason}): ${one.detail}`));
  return found;
}

function drawMoving(count) {
  const go = element("button", { type: "button" }, `Move ${count === 1 ? "it" : "them"} now`);
  const said = element("span", { role: "status" });
  go.addEventListener("click", async () => {
    go.disabled = true;
    try {
      const done = await ask("rebalance", "POST", { dry_run: false });
      said.textContent = `${done.moves.length} under way; they are told as they end.`;
    } catch (problem) {
      said.textContent = problem.status === 401 ? `${explainProblem(problem)} The field is in the dialog Policy.` : problem.message;
      go.disabled = false;
    }
  });
  return element("p", {}, go, " ", said);
}
