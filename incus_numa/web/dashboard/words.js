// How numbers, times and sets are shown, and how elements are made. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function shape(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(key, value);
  made.append(...children.filter((one) => one !== null && one !== undefined));
  return made;
}

// "0-3,8" as [0, 1, 2, 3, 8].
export function ids(text) {
  const found = [];
  for (const part of (text || "").split(",").filter(Boolean)) {
    const [first, last] = part.split("-").map(Number);
    for (let id = first; id <= (last ?? first); id++) found.push(id);
  }
  return found;
}

// ... and back, from ascending numbers.
export function list(numbers) {
  const runs = [];
  for (const id of numbers) {
    const last = runs[runs.length - 1];
    if (last && id === last[1] + 1) last[1] = id;
    else runs.push([id, id]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(",");
}

export function bytes(amount) {
  if (amount === null || amount === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (amount >= 1024 && place < units.length - 1) {
    amount /= 1024;
    place++;
  }
  return `${amount < 10 && place ? amount.toFixed(1) : Math.round(amount)} ${units[place]}`;
}

const pen = document.createElement("canvas").getContext("2d");

// How wide a text of the drawings is, in pixels; the style sheet has the same font.
export function wide(text, size = 11) {
  pen.font = `${size}px system-ui, sans-serif`;
  return pen.measureText(text).width;
}

// As much of a name as has room: the middle is left out, as names that are alike differ at their end.
export function cut(name, room) {
  if (wide(name) <= room) return name;
  for (let letters = Math.min(name.length - 1, Math.ceil(room / 4)); letters > 1; letters--) {
    const end = Math.ceil(letters / 2);
    const text = `${name.slice(0, letters - end)}…${name.slice(name.length - end)}`;
    if (wide(text) <= room) return text;
  }
  return "";
}

// What a list of colours means: [class, text] each.
export function marks(known) {
  return known.map(([kind, text]) => element("li", {}, shape("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, shape("rect", { class: kind, width: 10, height: 10, rx: 1 })), text));
}

// Times are told as the command line and the API do: in UTC, to the second.
export const time = (seconds) => (Number.isFinite(seconds) ? new Date(seconds * 1000).toISOString().replace(/\.\d+Z$/, "Z") : "–");
export const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
export const part = (value) => (value === null || value === undefined ? "–" : `${Math.round(value * 100)} %`);
export const nodesOf = (text) => (text ? `${/[,-]/.test(text) ? "nodes" : "node"} ${text}` : "no nodes recorded");

// 0 idle, 1 in use, 2 full, 3 more than full.
export const heat = (load) => (load === null || load === undefined ? null : load < 0.05 ? 0 : load < 0.6 ? 1 : load <= 1.001 ? 2 : 3);
