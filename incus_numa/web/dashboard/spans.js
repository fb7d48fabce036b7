// Instances as spans over the columns of their nodes: as many lanes as it takes, and one stop for the Tab key, from
// which arrow keys lead on. Who has the focus keeps it when everything is drawn anew.

import { cut, ids, shape } from "./words.js";

export class Spans {
  #shown = [];
  #current = "";

  // Lays them out over neighbouring columns, and says how many lanes it took; an instance on scattered nodes has a
  // span for each run of them.
  pack(instances, order) {
    const runs = instances.flatMap((one) => runsOf(one, order));
    runs.sort((a, b) => b.last - b.first - (a.last - a.first) || a.first - b.first || a.instance.name.localeCompare(b.instance.name));
    const taken = [];
    for (const run of runs) {
      run.lane = 0;
      while ((taken[run.lane] || []).some((other) => run.first <= other.last && other.first <= run.last)) run.lane++;
      (taken[run.lane] ||= []).push(run);
    }
    this.#shown = runs.sort((a, b) => a.lane - b.lane || a.first - b.first);
    return taken.length;
  }

  draw(drawn, grid, open) {
    for (const one of this.#shown) {
      one.element = drawSpan(one, grid);
      drawn.append(one.element);
    }
    this.#lead(this.#shown.find((one) => one.key === this.#current) || this.#shown[0]);
    const asked = (event) => {
      const span = event.target.closest(".span");
      const one = this.#shown.find((other) => other.element === span);
      if (!one) return;
      if (event.type === "click" || event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        this.#lead(one);
        open(one.instance, one.key);
        return;
      }
      const next = event.ctrlKey || event.altKey || event.metaKey ? null : this.#next(one, event.key);
      if (!next) return;
      event.preventDefault();
      this.#lead(next);
      next.element.focus();
    };
    drawn.addEventListener("click", asked);
    drawn.addEventListener("keydown", asked);
  }

  // Draws anew, and gives the focus back to the span that had it.
  keep(place, draw) {
    const had = place.contains(document.activeElement) && document.activeElement.closest(".span");
    draw();
    if (had) this.focus(place, had.dataset.span);
  }

  // To this span, or where it is gone to the one that Tab leads to.
  focus(place, key) {
    const one = this.#shown.find((other) => other.key === key) || this.#shown.find((other) => other.key === this.#current);
    (one ? one.element : place).focus({ preventScroll: true });
  }

  #lead(one) {
    for (const other of this.#shown) other.element.setAttribute("tabindex", other === one ? 0 : -1);
    this.#current = one ? one.key : "";
  }

  #next(one, key) {
    const at = this.#shown.indexOf(one);
    const above = this.#shown.filter((other) => other.first <= one.last && one.first <= other.last);
    const found = {
      ArrowRight: this.#shown[at + 1],
      ArrowLeft: this.#shown[at - 1],
      ArrowDown: above.find((other) => other.lane > one.lane),
      ArrowUp: above.findLast((other) => other.lane < one.lane),
      Home: this.#shown[0],
      End: this.#shown.at(-1),
    };
    return Object.hasOwn(found, key) ? found[key] || one : null;
  }
}

function runsOf(instance, order) {
  const places = ids(instance.nodes).map((node) => order.get(node)).filter((at) => at !== undefined).sort((a, b) => a - b);
  const runs = [];
  for (const at of places) {
    const last = runs[runs.length - 1];
    if (last && at === last.last + 1) last.last = at;
    else runs.push({ instance, first: at, last: at, key: `${instance.project}/${instance.name}/${runs.length}` });
  }
  return runs;
}

function drawSpan({ instance, first, last, key, lane }, { left, step, width, top, lane: high }) {
  const long = (last - first) * step + width;
  const kind = instance.state.startsWith("refused") ? "refused" : instance.state;
  const told = `${instance.name}, ${instance.vcpus ?? "any number of"} vCPUs, ${instance.state}`;
  const group = shape("g", { class: `span ${kind}`, role: "button", "data-span": key, "aria-label": `${told}: explain` });
  const [x, y] = [left + first * step, top + lane * high];
  group.append(shape("title", {}, told), shape("rect", { x, y, width: long, height: high - 2, rx: 3 }), shape("text", { x: x + 3, y: y + 11 }, cut(instance.name, long - 6)));
  return group;
}
