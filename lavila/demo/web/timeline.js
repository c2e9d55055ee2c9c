// The timeline under the player: how well each moment fits the query, where the hits are, where the video is now, and a
// stretch that is marked by dragging, or with [ and ].

import { byId, clock, el, svg } from "/assets/basics.js";

const HEIGHT = 92, TOP = 8, BASE = 70; // pixels: of the drawing, above the curve, and its foot
const CLICK = 4; // pixels that a hand may move in a click
const STEPS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
const LABEL = 84; // pixels between two labels, at least

/** The highest value of each column of pixels, as [x, value]; a video may have more moments than pixels. */
export function columns(times, values, x) {
  const found = new Map();
  times.forEach((time, place) => {
    const column = Math.round(x(time));
    const before = found.get(column);
    if (before === undefined || values[place] > before) found.set(column, values[place]);
  });
  return [...found].sort((a, b) => a[0] - b[0]);
}

export class Timeline {
  /** seek(second), mark(region or null): what a hand does. say(second): words for a second, or "". */
  constructor({ seek, mark, say }) {
    this.box = byId("timeline");
    this.on = { seek, mark, say };
    this.duration = 0;
    this.curve = null; // {times, similarity}
    this.hits = []; // {start, stop, score} of this video
    this.region = null;
    this.now = 0;
    this.drawing = svg("svg", { role: "slider", tabindex: 0, "aria-label": "Timeline", "aria-valuemin": 0, height: HEIGHT });
    this.tip = el("output", { class: "tip", hidden: true });
    this.box.append(this.drawing, this.tip);
    new ResizeObserver(() => this.draw()).observe(this.box);
    this.drawing.addEventListener("pointerdown", (event) => this.#press(event));
    this.drawing.addEventListener("pointermove", (event) => this.#point(event));
    this.drawing.addEventListener("pointerleave", () => { this.tip.hidden = true; this.line?.setAttribute("visibility", "hidden"); });
    this.drawing.addEventListener("keydown", (event) => this.#key(event));
  }

  show({ duration, curve, hits, range }) {
    Object.assign(this, { duration, curve, hits, range });
    this.draw();
  }

  setRegion(region) {
    this.region = region;
    this.draw();
  }

  setNow(second) {
    this.now = second;
    const x = this.#x(second);
    this.head?.setAttribute("transform", `translate(${x} 0)`);
    this.drawing.setAttribute("aria-valuenow", second.toFixed(1));
    this.drawing.setAttribute("aria-valuetext", [clock(second, true), this.on.say(second)].filter(Boolean).join(": "));
  }

  draw() {
    const width = this.box.clientWidth;
    if (!width || !this.duration) return;
    this.width = width;
    const x = (second) => this.#x(second);
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.drawing.setAttribute("width", width);
    this.drawing.setAttribute("aria-valuemax", this.duration.toFixed(1));
    const parts = [svg("rect", { class: "ground", x: 0, y: 0, width, height: BASE, rx: 6 })];
    if (this.region) {
      const [a, b] = this.region;
      parts.push(svg("rect", { class: "stretch", x: x(a), y: 0, width: Math.max(x(b) - x(a), 2), height: BASE }));
    }
    if (this.curve?.times.length) {
      const [low, high] = this.range;
      const y = (value) => TOP + (BASE - TOP) * (1 - Math.min(Math.max((value - low) / Math.max(high - low, 1e-6), 0), 1));
      const points = columns(this.curve.times, this.curve.similarity, x).map(([px, value]) => `${px} ${y(value).toFixed(1)}`);
      const first = points[0].split(" ")[1], last = points.at(-1).split(" ")[1];
      const path = `M0 ${first}L${points.join("L")}L${width} ${last}`;
      parts.push(svg("path", { class: "under", d: `${path}V${BASE}H0Z` }), svg("path", { class: "curve", d: path }));
    }
    for (const hit of this.hits) {
      const fit = (hit.score - this.range[0]) / Math.max(this.range[1] - this.range[0], 1e-6);
      const opacity = (0.2 + 0.8 * Math.min(Math.max(fit, 0), 1)).toFixed(2);
      parts.push(svg("rect", { class: "hit", opacity, x: x(hit.start), y: BASE - 5, width: Math.max(x(hit.stop) - x(hit.start), 3), height: 5, rx: 1.5 }));
    }
    parts.push(...this.#labels(x));
    this.line = svg("line", { class: "pointed", y1: 0, y2: BASE, visibility: "hidden" });
    this.head = svg("g", { class: "head" });
    this.head.append(svg("line", { y1: 0, y2: BASE }), svg("circle", { cy: BASE, r: 5 }));
    this.drawing.replaceChildren(...parts, this.line, this.head);
    this.setNow(this.now);
  }

  #labels(x) {
    const step = STEPS.find((one) => x(one) >= LABEL) ?? 14400;
    const made = [];
    for (let second = 0; second <= this.duration; second += step) {
      const label = svg("text", { x: x(second), y: HEIGHT - 4, "text-anchor": second === 0 ? "start" : x(second) > this.width - 24 ? "end" : "middle" });
      label.textContent = clock(second, step < 1);
      made.push(svg("line", { class: "tick", x1: x(second), x2: x(second), y1: BASE, y2: BASE + 4 }), label);
    }
    return made;
  }

  #x(second) {
    return (this.width ?? 0) * Math.min(second / (this.duration || 1), 1);
  }

  #second(event) {
    const box = this.drawing.getBoundingClientRect();
    return this.duration * Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
  }

  /** A click seeks; a drag marks a stretch. */
  #press(event) {
    if (event.button) return;
    const from = this.#second(event), began = event.clientX;
    this.drawing.setPointerCapture(event.pointerId);
    let moved = false;
    const move = (next) => {
      if (!moved && Math.abs(next.clientX - began) < CLICK) return;
      moved = true;
      const to = this.#second(next);
      this.setRegion([Math.min(from, to), Math.max(from, to)]);
    };
    const end = (next) => {
      this.drawing.removeEventListener("pointermove", move);
      this.drawing.removeEventListener("pointerup", end);
      this.drawing.removeEventListener("pointercancel", end);
      if (moved) this.on.mark(this.region);
      else if (next.type === "pointerup") this.on.seek(from);
    };
    this.drawing.addEventListener("pointermove", move);
    this.drawing.addEventListener("pointerup", end);
    this.drawing.addEventListener("pointercancel", end);
  }

  #point(event) {
    const second = this.#second(event), x = this.#x(second);
    this.line?.setAttribute("x1", x);
    this.line?.setAttribute("x2", x);
    this.line?.setAttribute("visibility", "visible");
    this.tip.hidden = false;
    this.tip.textContent = [clock(second, true), this.on.say(second)].filter(Boolean).join(" · ");
    const half = this.tip.offsetWidth / 2;
    this.tip.style.left = `${Math.min(Math.max(x, half), this.width - half)}px`;
  }

  #key(event) {
    const step = event.shiftKey ? 10 : 1;
    const to = {
      ArrowLeft: this.now - step, ArrowRight: this.now + step, ArrowDown: this.now - step, ArrowUp: this.now + step,
      PageDown: this.now - 30, PageUp: this.now + 30, Home: 0, End: this.duration,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.on.seek(Math.min(Math.max(to, 0), Math.max(this.duration - 0.05, 0)));
  }
}
