// What is said of the video: a list to click on, subtitles, also while a narrator is still at work.

import { address, ask, byId, clock, el } from "/assets/basics.js";

const EVERY = 1500; // milliseconds between two questions how far the narrator is

export class Transcript {
  constructor(video, { seek, canNarrate }) {
    this.video = video;
    this.on = { seek, canNarrate };
    this.box = byId("transcript");
    this.track = video.addTextTrack("subtitles", "Narration", "en");
    this.track.mode = "showing";
    this.moments = [];
    this.rows = [];
    this.at = -1;
  }

  /** Show nothing: another video is opened, and it is not known yet what is said of it. */
  clear() {
    clearTimeout(this.timer);
    Object.assign(this, { name: null, moments: [], rows: [], at: -1 });
    for (const cue of [...(this.track.cues ?? [])]) this.track.removeCue(cue);
    this.box.replaceChildren();
    this.box.hidden = true;
  }

  /** Show what is said of a video. lead: how far the clock of the file is ahead. */
  show(name, narration, lead) {
    this.clear();
    Object.assign(this, { name, lead });
    this.list = el("ol", {});
    this.head = el("h3", {});
    this.note = el("p", { class: "quiet" });
    this.box.replaceChildren(this.head, this.note, this.list);
    this.#update(narration);
    if (narration.state === "none" && this.on.canNarrate()) this.#ask(); // whoever gave a narrator wants its words
  }

  /** The words for a second, or "". */
  say(second) {
    return this.moments[this.#place(second)]?.text ?? "";
  }

  setNow(second) {
    const at = this.#place(second);
    if (at === this.at) return;
    this.rows[this.at]?.removeAttribute("aria-current");
    this.at = at;
    const row = this.rows[at];
    row?.setAttribute("aria-current", "true");
    if (row && !this.video.paused && !this.list.matches(":hover, :focus-within")) {
      this.list.scrollTop = row.offsetTop - this.list.offsetTop - this.list.clientHeight / 3;
    }
  }

  #place(second) {
    return this.moments.findIndex((one) => one.start <= second && second < one.stop);
  }

  #update(narration) {
    for (const moment of narration.moments.slice(this.moments.length)) {
      this.moments.push(moment);
      const text = moment.text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
      this.track.addCue(new VTTCue(moment.start + this.lead, moment.stop + this.lead, text));
      const row = el("button", { onclick: () => this.on.seek(moment.start) }, el("time", {}, clock(moment.start)), ` ${moment.text}`);
      this.rows.push(row);
      this.list.append(el("li", {}, row));
    }
    const { state, share, reason } = narration;
    const busy = state === "running" || state === "waiting";
    const offered = this.on.canNarrate() && state === "failed";
    this.box.hidden = !this.moments.length && !busy && !offered && state !== "failed";
    this.head.replaceChildren("What is said of it");
    if (state === "done" && this.moments.length) {
      this.head.append(el("a", { class: "aside", href: address("/subtitles", { video: this.name }), download: "subtitles.vtt" }, "Subtitles (.vtt)"));
    }
    this.note.replaceChildren();
    if (state === "running") this.note.append(`The narrator is at ${Math.round(share * 100)} % …`);
    else if (state === "waiting") this.note.append("The narrator is busy with another video; this one is next.");
    else if (state === "failed") this.note.append(`It could not be narrated: ${reason} `);
    else if (state === "done" && !this.moments.length) this.note.append("Nothing moves in it, so nothing is said.");
    if (offered) this.note.append(el("button", { onclick: () => this.#ask() }, "Try again"));
    this.note.hidden = !this.note.hasChildNodes();
    if (busy) this.timer = setTimeout(() => this.#ask(), EVERY);
  }

  async #ask() {
    const name = this.name;
    try {
      const narration = await ask("/api/narrate", { video: name }, { method: "POST" });
      if (name === this.name) this.#update(narration);
    } catch (error) {
      if (name === this.name) this.#update({ state: "failed", share: 0, reason: error.message, moments: [] });
    }
  }
}
