// A block of 16 rows and 32 inputs, multiplied in eight steps of four inputs.
qlab.define("lanes", (root, data) => {
  const { el, svgEl, slider, colors } = qlab;
  const state = { step: 1, lane: 0 };
  const cell = 19, left = 48, top = 44, gap = 14, wide = 70;
  const right = left + 32 * cell + gap;
  const say = v => String(v).replace("-", "−");
  const drawing = svgEl("svg", { viewBox: `0 0 ${right + wide} ${top + 16 * cell + 8}`, role: "img" });
  const memory = el("div", { class: "qlanes-memory" }), read = qlab.readout();
  const style = el("style", {}, `
.qlanes-draw { overflow-x: auto; } .qlanes-draw svg { min-width: 560px; cursor: pointer; }
.qlanes-draw text { font-size: 10.5px; }
.qlanes-memory { display: flex; flex-wrap: wrap; gap: 3px; margin: .5rem 0; font-family: var(--q-mono, monospace); font-size: .78rem; }
.qlanes-memory span { border: 1px solid currentColor; border-radius: 2px; padding: .1rem .3rem; opacity: .55; }
.qlanes-memory .now { opacity: 1; font-weight: 700; outline: 2px solid currentColor; }`);
  drawing.addEventListener("click", e => {
    const box = drawing.getBoundingClientRect();
    const y = (e.clientY - box.top) / box.height * (top + 16 * cell + 8);
    const row = Math.floor((y - top) / cell);
    if (row < 0 || row > 15) return;
    lane.querySelector("input").value = row;
    lane.querySelector("input").dispatchEvent(new Event("input"));
  });
  const update = () => {
    const s = state.step, from = 4 * (s - 1), sums = data.sums[s], r = state.lane;
    const parts = [svgEl("text", { x: left, y: 12 }, "inputs"),
      svgEl("text", { x: right + wide - 14, y: 12, "text-anchor": "end" }, "sums")];
    for (let i = 0; i < 32; i++) {
      const now = s > 0 && i >= from && i < from + 4;
      parts.push(svgEl("text", { x: left + (i + .5) * cell, y: i % 2 ? 38 : 26, "text-anchor": "middle",
        "font-weight": now ? 700 : 400 }, say(data.inputs[i])));
    }
    for (let row = 0; row < 16; row++) {
      const y = top + row * cell;
      parts.push(svgEl("text", { x: left - 6, y: y + 13, "text-anchor": "end",
        "font-weight": row === r ? 700 : 400 }, `row ${row}`));
      for (let i = 0; i < 32; i++) {
        const now = s > 0 && i >= from && i < from + 4, done = s > 0 && i < from;
        parts.push(svgEl("rect", { x: left + i * cell + 1, y: y + 1, width: cell - 2, height: cell - 2,
          fill: now ? colors[1] : colors[0], "fill-opacity": now ? .45 : done ? .3 : .08 }));
        parts.push(svgEl("text", { x: left + (i + .5) * cell, y: y + 13, "text-anchor": "middle",
          "font-weight": now && row === r ? 700 : 400 }, data.codes[row][i]));
      }
      parts.push(svgEl("text", { x: right + wide - 14, y: y + 13, "text-anchor": "end",
        "font-weight": row === r ? 700 : 400 }, say(sums[row])));
    }
    if (s) parts.push(svgEl("rect", { x: left + from * cell, y: top - 1, width: 4 * cell, height: 16 * cell + 2,
      fill: "none", stroke: "currentColor", "stroke-width": 2 }));
    parts.push(svgEl("rect", { class: "lane", x: right - 4, y: top + r * cell, width: wide - 4, height: cell,
      fill: "none", stroke: "currentColor", "stroke-width": 1.5 }));
    drawing.replaceChildren(...parts);
    drawing.setAttribute("aria-label", s ? `Columns ${from} to ${from + 3} of 16 rows are multiplied` : "No column is multiplied yet");
    const load = Math.floor((s - 1) / 2), upper = (s - 1) % 2 === 1;
    memory.replaceChildren(...data.codes.map((_, row) => {
      const now = s > 0 && row === r, first = s ? Math.max(0, load) * 8 : 0;
      const bytes = [0, 1, 2, 3].map(i => (data.codes[row][first + i] | data.codes[row][first + 4 + i] << 4)
        .toString(16).toUpperCase().padStart(2, "0"));
      return el("span", now ? { class: "now" } : {}, bytes.join(" "));
    }));
    if (!s) {
      read.replaceChildren("Each lane begins at −8 · (sum of the inputs) = ", el("strong", {}, say(sums[r])),
        ": the codes are stored with 8 added, and this takes it back. Above, the first 64 bytes of the block.");
      return;
    }
    const q = data.codes[r].slice(from, from + 4), x = data.inputs.slice(from, from + 4);
    const terms = q.map((v, i) => `${v}·${x[i] < 0 ? `(${say(x[i])})` : x[i]}`).join(" + ");
    read.replaceChildren(`Step ${s} of 8: the ${upper ? "upper" : "lower"} halves of the 64 bytes above (load ${load}), `
      + `times inputs ${from} to ${from + 3}. Lane ${r}: ${say(data.sums[s - 1][r])} + ${terms} = `,
      el("strong", {}, say(sums[r])), ".");
  };
  const step = slider("Step", 0, 8, state.step, v => v ? `${v} of 8` : "start", v => { state.step = v; update(); });
  const lane = slider("Lane", 0, 15, state.lane, v => `row ${v}`, v => { state.lane = v; update(); });
  const box = el("div", { class: "qlanes-draw", tabindex: 0, role: "region", "aria-label": "The block; scrolls sideways on a small screen" });
  box.append(drawing);
  root.append(style, el("div", { class: "qfig-controls" }, step, lane), box, memory, read);
  update();
});
