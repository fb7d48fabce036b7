// The policy that is in force, and a preview of what a rebalance would do. Changes are made where that is allowed.

import { ask, token } from "./api.js";
import { table } from "./detail.js";
import { element, number } from "./words.js";

export async function openPolicy(dialog) {
  const body = dialog.querySelector("#policy-body");
  body.replaceChildren(element("p", { class: "dim" }, "asking…"));
  if (!dialog.open) dialog.showModal();
  try {
    show(body, await ask("policy"));
  } catch (problem) {
    body.replaceChildren(element("p", { class: "errors" }, problem.message));
  }
}

function show(body, policy, told = "") {
  const form = element("form", {});
  const source = policy.source === "api" ? `Set here, over ${policy.file}.` : `As in ${policy.file}.`;
  form.append(element("p", {}, source), ...Object.entries(policy.effective).map(([name, keys]) => drawTable(name, keys, policy)));
  const errors = element("ul", { class: "errors", role: "alert" });
  const said = element("span", { role: "status" }, told);
  const back = element("button", { type: "button" }, "Back to the file");
  back.disabled = policy.source !== "api";
  form.append(drawToken(), errors, element("p", {}, element("button", { type: "submit" }, "Apply"), " ", back, " ", said));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    carryOut(body, errors, () => ask("policy", "PUT", read(form, policy)), "In force now.");
  });
  back.addEventListener("click", () => carryOut(body, errors, () => ask("policy", "DELETE"), "The file is in force again."));
  body.replaceChildren(form);
}

async function carryOut(body, errors, work, told) {
  errors.replaceChildren();
  try {
    show(body, await work(), told);
  } catch (problem) {
    const lines = problem.errors && problem.errors.length ? problem.errors : [problem.message];
    errors.replaceChildren(...lines.map((line) => element("li", {}, line)));
  }
}

function drawTable(name, keys, policy) {
  const own = element("fieldset", {}, element("legend", {}, name));
  for (const [key, value] of Object.entries(keys)) {
    const full = `${name}.${key}`;
    const changed = policy.changes[name] && key in policy.changes[name];
    const meaning = policy.meanings[full] || "";
    const line = element("div", { class: changed ? "setting changed" : "setting" });
    const input = drawInput(full, value, meaning);
    input.disabled = policy.fixed.includes(full);
    line.append(element("label", { for: full }, key), input, element("small", {}, input.disabled ? `${meaning} Only in the file.` : meaning));
    own.append(line);
  }
  return own;
}

// Choices are told in the meaning, in quotes; a field says of what type its value is.
function drawInput(full, value, meaning) {
  const choices = [...meaning.matchAll(/"([a-z]+)"/g)].map((one) => one[1]);
  if (typeof value === "boolean") {
    const input = element("input", { id: full, type: "checkbox" });
    input.checked = value;
    return input;
  }
  if (typeof value === "number") return element("input", { id: full, type: "number", step: "any", value });
  if (typeof value === "string" && new Set(choices).size > 1 && choices.includes(value)) {
    const input = element("select", { id: full }, ...[...new Set(choices)].map((one) => element("option", {}, one)));
    input.value = value;
    return input;
  }
  return element("input", { id: full, type: "text", value: typeof value === "string" ? value : JSON.stringify(value) });
}

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
  if (typeof before === "number") return input.value === "" ? null : Number(input.value);
  if (typeof before === "string") return input.value;
  try {
    return JSON.parse(input.value);
  } catch {
    return input.value;
  }
}

function drawToken() {
  const input = element("input", { id: "token", type: "password", autocomplete: "off", value: token.get() });
  input.addEventListener("change", () => token.set(input.value.trim()));
  return element("div", { class: "setting" }, element("label", { for: "token" }, "Token"), input, element("small", {}, "Over TCP, changes need the token of api.token_file. It is kept until this tab is closed."));
}

export async function openPreview(dialog) {
  const body = dialog.querySelector("#preview-body");
  body.replaceChildren(element("p", { class: "dim" }, "asking…"));
  if (!dialog.open) dialog.showModal();
  try {
    const plan = await ask("plan");
    body.replaceChildren(...tellPlan(plan, body));
  } catch (problem) {
    body.replaceChildren(element("p", { class: "errors" }, problem.message));
  }
}

function tellPlan(plan, body) {
  const load = plan.by_load || { moves: [] };
  const found = [element("p", {}, load.why || "")];
  if (load.moves.length) {
    found.push(table("Moves that pay", ["Instance", "From", "To", "Gain", "Price", "Why"], load.moves.map((one) => [one.name, one.from, one.to, number(one.gain, 3), number(one.price, 3), one.reason])));
    const go = element("button", { type: "button" }, `Move ${load.moves.length === 1 ? "it" : "them"} now`);
    const said = element("span", { role: "status" });
    go.addEventListener("click", async () => {
      go.disabled = true;
      try {
        const done = await ask("rebalance", "POST", { dry_run: false });
        said.textContent = `${done.moves.length} under way; they are told as they end.`;
      } catch (problem) {
        said.textContent = problem.status === 401 || problem.status === 403 ? `${problem.message} (the token is entered under Policy)` : problem.message;
        go.disabled = false;
      }
    });
    found.push(element("p", {}, go, " ", said));
  } else {
    found.push(element("p", {}, "Nothing moves by load."));
  }
  const steps = Object.entries(plan.steps || {});
  if (steps.length) found.push(table("What a pass would change", ["Instance", "Steps"], steps.map(([name, own]) => [name, own.join("; ")])));
  for (const one of plan.rejections || []) found.push(element("p", { class: "errors" }, `${one.name}: refused (${one.reason}): ${one.detail}`));
  return found;
}
