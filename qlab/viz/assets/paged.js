// A scheduler's steps: the blocks of the cache with their owners, and the way of each request.
qlab.define("paged", (root, data) => {
  const { el, svgEl, choice, slider, colors } = qlab;
  const state = { run: 0, step: 0 };
  const words = { "-": "not there yet", w: "waits", r: "reads its prompt", t: "writes a token", i: "has a place, sits out", e: "has ended" };
  const style = el("style", {}, `
.qpaged-blocks { display: grid; grid-template-columns: repeat(auto-fill, minmax(3.1rem, 1fr)); gap: 5px; margin: .3rem 0 1rem; }
.qpaged-block { border: 1px solid var(--q-line, #8888); border-radius: 4px; overflow: hidden; font-size: .8rem; text-align: center; }
.qpaged-block b { display: block; min-height: 1.5em; line-height: 1.5; }
.qpaged-block i { display: block; height: .5rem; background: var(--q-line, #8884); }
.qpaged-block u { display: block; height: 100%; background: currentColor; opacity: .75; }
.qpaged-step { display: flex; gap: .5rem; align-items: end; flex: 1 1 14rem; }
.qpaged-step label { flex: 1 1 8rem; min-width: 0; }
.qfig h4.qpaged { font-size: .85rem; margin: .4rem 0 .2rem; }
.qpaged-key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .8rem; margin: .3rem 0 0; padding: 0; list-style: none; }`);
  const blocks = el("div", { class: "qpaged-blocks", role: "img" });
  const lanes = el("div");
  const read = qlab.readout(), key = el("ul", { class: "qpaged-key" });
  const frames = () => data.runs[state.run].frames, names = () => data.runs[state.run].names;
  const color = i => colors[i % colors.length];

  const drawBlocks = frame => {
    blocks.replaceChildren(...frame.owners.map((owners, i) => {
      const whose = owners.map(o => names()[o]).join("");
      const box = el("div", { class: "qpaged-block", title: `block ${i}: ${owners.length ? whose + `, ${frame.filled[i]} of ${data.size} tokens` : "free"}` });
      const top = el("b", {}, whose || "\u00a0");
      if (owners.length) {
        const parts = owners.map((o, j) => `color-mix(in srgb, ${color(o)} 38%, transparent) ${100 * j / owners.length}% ${100 * (j + 1) / owners.length}%`);
        top.style.background = `linear-gradient(90deg, ${parts.join(", ")})`;
      }
      const fill = el("u");
      fill.style.width = `${100 * frame.filled[i] / data.size}%`;
      box.append(top, el("i", {}, fill));
      return box;
    }));
    const taken = frame.owners.filter(o => o.length).length;
    blocks.setAttribute("aria-label", `${taken} of ${frame.owners.length} blocks are in use: ` + frame.owners
      .map((o, i) => o.length ? `${i} ${o.map(x => names()[x]).join(" and ")}` : "").filter(Boolean).join(", "));
  };
  const drawLanes = () => {
    const all = frames(), left = 22, wide = 460, cell = Math.min(24, (wide - left) / all.length), high = 20;
    const height = names().length * high + 24;
    const svg = svgEl("svg", { viewBox: `0 0 ${wide} ${height}`, role: "img", "aria-label": "A row for each request: " +
      names().map((n, r) => `${n} ${words[all[state.step].states[r]]}`).join(", ") });
    names().forEach((name, r) => {
      svg.append(svgEl("text", { x: 0, y: r * high + 15 }, name));
      all.forEach((frame, s) => {
        const what = frame.states[r];
        if (what === "-" || what === "e") return;
        const strength = { w: 0, i: 0, r: 1, t: .5 }[what];
        const box = svgEl("rect", { x: left + s * cell + .5, y: r * high + 2, width: Math.max(cell - 1, 1), height: high - 5,
          fill: strength ? color(r) : "none", "fill-opacity": strength * (s <= state.step ? 1 : .25),
          stroke: what === "w" ? "currentColor" : color(r), "stroke-opacity": s <= state.step ? .8 : .25, "stroke-width": 1 });
        if (what === "w") box.setAttribute("stroke-dasharray", "2 2");
        svg.append(box);
      });
    });
    const x = left + (state.step + 1) * cell;
    svg.append(svgEl("line", { x1: x, x2: x, y1: 0, y2: height - 22, stroke: "currentColor", "stroke-width": 2 }));
    svg.append(svgEl("text", { x: Math.min(Math.max(x, 40), wide - 40), y: height - 5, "text-anchor": "middle" }, `step ${state.step + 1}`));
    lanes.replaceChildren(svg);
  };
  const update = () => {
    const all = frames();
    state.step = Math.max(0, Math.min(state.step, all.length - 1));
    const frame = all[state.step];
    drawBlocks(frame);
    drawLanes();
    const tokens = frame.filled.reduce((a, b) => a + b, 0), taken = frame.owners.filter(o => o.length).length;
    const writes = names().filter((_, r) => frame.states[r] === "t");
    read.replaceChildren(el("strong", {}, `Step ${state.step + 1} of ${all.length}. `),
      (frame.said.length ? frame.said.join("; ") + ". " : "") + (writes.length ? `${writes.join(", ")} ${writes.length > 1 ? "write" : "writes"} a token. ` : ""),
      "In the cache: ", el("strong", {}, `${tokens} tokens`), ` in ${taken} of ${frame.owners.length} blocks`,
      taken ? ` (${Math.round(100 * (1 - tokens / (taken * data.size)))}% of them empty).` : ".");
  };
  let bar;
  const makeBar = () => slider("Step", 1, frames().length, state.step + 1, v => `${v}`, v => { state.step = v - 1; update(); });
  const rail = el("div", { class: "qpaged-step" });
  const go = by => {
    state.step += by;
    update();
    const input = bar.querySelector("input");
    input.value = state.step + 1;
    bar.querySelector("output").textContent = `${state.step + 1}`;
    input.setAttribute("aria-valuetext", `${state.step + 1}`);
  };
  const button = (text, label, by) => {
    const b = el("button", { type: "button", "aria-label": label }, text);
    b.addEventListener("click", () => go(by));
    return b;
  };
  const back = button("\u25C0", "Step back", -1), on = button("\u25B6", "Step on", 1);
  const build = () => { bar = makeBar(); rail.replaceChildren(back, bar, on); update();
    key.replaceChildren(...names().map((n, i) => el("li", {}, el("strong", {}, n), ` ${data.runs[state.run].about[i]}`))); };
  const controls = el("div", { class: "qfig-controls" },
    choice("Run", data.runs.map(r => r.title), 0, v => { state.run = v; state.step = 0; build(); }), rail);
  root.qlabRun = (run, step) => { // for tests
    state.run = run; state.step = step; build();
    return [...blocks.querySelectorAll("b")].map(b => b.textContent.trim());
  };
  root.append(style, controls, el("h4", { class: "qpaged" }, `The cache: blocks of ${data.size} tokens, the letters of those who list them, and how full`), blocks,
    el("h4", { class: "qpaged" }, "The requests: dashed waits, full reads its prompt, half writes"), lanes, key, read);
  build();
});
