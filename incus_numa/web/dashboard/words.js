// How numbers and sets are shown, and how elements are made. Text is only ever set as text.

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

export const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
export const part = (value) => (value === null || value === undefined ? "–" : `${Math.round(value * 100)} %`);
export const nodesOf = (text) => (text ? `${/[,-]/.test(text) ? "nodes" : "node"} ${text}` : "no nodes recorded");

// 0 idle, 1 in use, 2 full, 3 more than full.
export const heat = (load) => (load === null || load === undefined ? null : load < 0.05 ? 0 : load < 0.6 ? 1 : load <= 1.001 ? 2 : 3);
