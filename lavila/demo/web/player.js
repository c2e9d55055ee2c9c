// The player: the video from a given second, a copy where the browser cannot play the file, the timeline, the words.

import { address, ask, byId, clock, el, shortName } from "/assets/basics.js";
import { Timeline } from "/assets/timeline.js";
import { Transcript } from "/assets/transcript.js";

const EVERY = 700; // milliseconds between two questions how far a copy is
const JUST_INSIDE = 0.001; // seconds: the frame that begins at a moment, not the one before

export class Player {
  /** like(start, stop), region(region or null), moved(second), close(): what happens here. */
  constructor({ like, region, moved, canNarrate, window }) {
    this.on = { like, region, moved };
    this.window = window;
    this.box = byId("watch");
    this.video = byId("video");
    this.waiting = byId("wait");
    this.name = null;
    this.lead = 0;
    const seek = (second) => this.seek(second);
    this.transcript = new Transcript(this.video, { seek: (second) => this.seek(second, true), canNarrate });
    this.timeline = new Timeline({ seek, mark: (marked) => this.mark(marked), say: (second) => this.transcript.say(second) });
    this.video.addEventListener("timeupdate", () => this.#tick());
    this.video.addEventListener("seeked", () => { this.#tick(); this.on.moved(this.rounded); });
    this.video.addEventListener("pause", () => this.on.moved(this.rounded));
    this.video.addEventListener("error", () => this.#failed());
  }

  get open() {
    return this.name !== null;
  }

  /** Seconds from the first frame. */
  get now() {
    return Math.max(this.video.currentTime - this.lead, 0);
  }

  /** The same for the address: without the little that seeking adds. */
  get rounded() {
    return Math.round(this.now * 100) / 100;
  }

  /** Open a video at a second, or go there where it is open. */
  async show(video, second, { play }) {
    this.region = null;
    this.stopAt = null;
    if (this.name === video.name && !this.failed) {
      this.seek(second, play);
      this.#drawRegion();
      return;
    }
    Object.assign(this, { name: video.name, duration: video.duration, lead: 0, failed: false, copied: false, at: second, play });
    this.box.hidden = false;
    document.body.classList.add("watching");
    byId("name").textContent = shortName(video.name);
    byId("name").title = video.name;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.#wait("");
    this.transcript.clear();
    this.timeline.now = second;
    this.timeline.show({ duration: video.duration, curve: null, hits: [], range: [0, 1] });
    this.#tick(second);
    this.#drawRegion();
    try {
      const facts = await ask("/api/video", { video: video.name });
      if (this.name !== video.name) return;
      this.facts = facts;
      this.lead = facts.direct ? facts.lead : 0;
      this.transcript.show(video.name, facts.narration, this.lead);
      if (facts.direct) this.#source("/media");
      else await this.#copy();
    } catch (error) {
      if (this.name === video.name) this.#stop(error.message);
    }
  }

  close() {
    this.name = null;
    clearTimeout(this.timer);
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.box.hidden = true;
    document.body.classList.remove("watching");
  }

  seek(second, play = false) {
    this.stopAt = null;
    this.at = second;
    if (this.video.readyState) this.video.currentTime = second + this.lead + JUST_INSIDE;
    this.#tick(second);
    this.play = play || this.play;
    if (play) this.video.play().catch(() => {});
  }

  toggle() {
    this.stopAt = null;
    if (this.video.paused) this.video.play().catch(() => {});
    else this.video.pause();
  }

  /** Mark a stretch; null forgets it. */
  mark(region, tell = true) {
    this.region = region;
    this.timeline.setRegion(region);
    this.#drawRegion();
    if (tell) this.on.region(region);
  }

  /** One end of the stretch is where the video is now. */
  markEnd(which) {
    const [a, b] = this.region ?? [this.now, this.now];
    const made = which === "start" ? [this.now, Math.max(b, this.now)] : [Math.min(a, this.now), this.now];
    if (made[1] - made[0] < 0.1) made[1] = Math.min(made[0] + this.window, this.duration);
    this.mark(made);
  }

  /** The stretch, or where nothing is marked the moment around the playhead. */
  get stretch() {
    if (this.region) return this.region;
    const half = this.window / 2;
    const start = Math.min(Math.max(this.now - half, 0), Math.max(this.duration - this.window, 0));
    return [start, Math.min(start + this.window, this.duration)];
  }

  #source(path) {
    this.#wait("");
    this.video.src = address(path, { video: this.name });
    this.video.addEventListener("loadedmetadata", () => this.seek(this.at, this.play), { once: true });
  }

  /** Play the copy as soon as it is there. */
  async #copy() {
    clearTimeout(this.timer);
    const name = this.name;
    const { state, share, reason } = await ask("/api/copy", { video: name }, { method: "POST" });
    if (name !== this.name) return;
    if (state === "done") {
      Object.assign(this, { lead: 0, copied: true });
      this.transcript.show(name, this.facts.narration, 0);
      this.#source("/copy");
    } else if (state === "failed") this.#stop(`No copy could be made. ${reason}`);
    else {
      this.#wait(state === "waiting" ? "Waiting for the copy of another video …" : "This browser cannot play the file. A copy that it can play is being made, once:", share);
      this.timer = setTimeout(() => this.#copy().catch((error) => this.#stop(error.message)), EVERY);
    }
  }

  #failed() {
    if (!this.open || !this.video.hasAttribute("src")) return;
    if (this.copied) this.#stop("The browser cannot play this video.");
    else this.#copy().catch((error) => this.#stop(error.message));
  }

  #stop(message) {
    this.failed = true;
    this.#wait(message);
  }

  #wait(message, share = null) {
    this.waiting.hidden = !message;
    this.waiting.replaceChildren(el("p", {}, message));
    if (share !== null) this.waiting.append(el("progress", { value: share, max: 1 }), el("p", {}, `${Math.floor(share * 100)} %`));
  }

  #tick(second = this.now) {
    if (!this.open) return;
    byId("clock").textContent = `${clock(second, true)} of ${clock(this.duration)}`;
    this.timeline.setNow(second);
    this.transcript.setNow(second);
    if (!this.region) this.#nameStretch();
    if (this.stopAt !== null && second >= this.stopAt) {
      this.stopAt = null;
      this.video.pause();
    }
  }

  #drawRegion() {
    this.timeline.setRegion(this.region);
    const more = el("button", { class: "main", id: "alike", onclick: () => this.on.like(...this.stretch) });
    const parts = [more];
    if (this.region) {
      parts.unshift(el("button", { onclick: () => { this.seek(this.region[0], true); this.stopAt = this.region[1]; } }, "Play the stretch"));
      parts.push(el("button", { onclick: () => this.mark(null) }, "Forget it"));
    }
    byId("region").hidden = !this.duration; // nothing of it could be read
    byId("region").replaceChildren(...parts, el("span", { class: "quiet" }, this.region ? "" : "Drag over the timeline to mark a stretch."));
    this.#nameStretch();
  }

  #nameStretch() {
    const [start, stop] = this.stretch;
    const button = byId("alike");
    if (button) button.textContent = `More like ${clock(start, true)} to ${clock(stop, true)}`;
  }
}
