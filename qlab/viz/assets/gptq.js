// GPTQ step by step: a small matrix whose columns are quantized in turn, and who pays for it.
qlab.define("gptq", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const rows = data.weight.length, columns = data.weight[0].length;
  const phone = root.clientWidth && root.clientWidth < 480;
  const width = phone ? 390 : 640, left = phone ? 26 : 66, top = 30;
  const cell = (width - left - 6) / columns, high = phone ? 34 : 40;
  const state = { step: 0, way: 0, kind: 0 };
  const ways = ["gptq", "rtn"], places = phone ? 1 : 2;
  const grid = svgEl("svg", { viewBox: `0 0 ${width} ${top + rows * high + 26}`, role: "img",
    "aria-label": "Weights, a column for each input" });
  const plots = el("div"), read = qlab.readout();
  const now = () => data.kinds[state.kind][ways[state.way]];
  // The largest move in steps of the grid, over everything: colors then compare.
  const most = Math.max(...data.kinds.flatMap(k => ways.flatMap(w => k[w].change.flatMap(
    m => m.flatMap((r, i) => r.map(v => Math.abs(v) / data.steps[i]))))));
  const signed = v => (v.toFixed(places) < 0 ? "−" : "") + Math.abs(v).toFixed(places);
  let mark, plot;
  const drawPlot = () => {
    const kind = data.kinds[state.kind];
    const peak = Math.max(...ways.flatMap(w => kind[w].loss)) || 1;
    plot = qlab.plot({ label: "Output error after each column", xLabel: "columns quantized",
      yLabel: "output error so far", xRange: [0, columns], yRange: [0, peak * 1.05], width: phone ? 380 : 640, height: 230,
      xTicks: Array.from({ length: columns + 1 }, (_, i) => i) });
    ways.forEach((w, i) => plot.layer.append(path(kind[w].loss.map((v, k) => [plot.x(k), plot.y(v)]),
      { stroke: colors[i], "stroke-dasharray": i ? "7 4" : "" })));
    mark = svgEl("g");
    plot.layer.append(mark);
    plots.replaceChildren(plot.svg);
  };
  const update = () => {
    const { change, codes, loss } = now(), k = state.step;
    grid.replaceChildren();
    for (let j = 0; j < columns; j++) {
      grid.append(svgEl("text", { x: left + (j + 0.5) * cell, y: top - 10, "text-anchor": "middle",
        "font-weight": j === k - 1 ? 700 : 400 }, j + 1));
      for (let i = 0; i < rows; i++) {
        const moved = change[k][i][j] / data.steps[i], value = data.weight[i][j] / data.steps[i] + moved;
        const x = left + j * cell, y = top + i * high;
        grid.append(svgEl("rect", { x: x + 1, y: y + 1, width: cell - 2, height: high - 2, rx: 3,
          fill: moved < 0 ? colors[0] : colors[1], "fill-opacity": (0.85 * Math.abs(moved) / most).toFixed(3),
          stroke: "currentColor", "stroke-opacity": j < k ? 0.9 : 0.2, "stroke-width": j === k - 1 ? 2.4 : 1 }));
        grid.append(svgEl("text", { x: x + cell / 2, y: y + high / 2 + 5, "text-anchor": "middle",
          "font-size": columns > 8 && phone ? 9 : 11.5 }, j < k ? String(codes[i][j]).replace("-", "−") : signed(value)));
      }
    }
    for (let i = 0; i < rows; i++) grid.append(svgEl("text", { x: left - 8, y: top + (i + 0.5) * high + 5,
      "text-anchor": "end" }, phone ? i + 1 : `output ${i + 1}`));
    grid.append(svgEl("text", { x: left, y: top + rows * high + 20 },
      phone ? "columns: inputs; framed: done, the code" : "columns: inputs; framed: done, the code; else the weight now, in steps of its row"));
    mark.replaceChildren(...ways.map((w, i) => svgEl("circle", { cx: plot.x(k), fill: colors[i],
      cy: plot.y(data.kinds[state.kind][w].loss[k]), r: i === state.way ? 6 : 4 })));
    const last = data.kinds[state.kind], other = k ? last.rtn.loss[k] : 0;
    const moves = k ? change[k].map((r, i) => r.map((v, j) => j >= k ? Math.abs(v - change[k - 1][i][j]) / data.steps[i] : 0)).flat() : [0];
    const step = Math.max(...moves);
    read.replaceChildren(k ? `Column ${k} of ${columns} is rounded. ` : "Nothing is rounded yet. ",
      k && k < columns ? (step > 0 ? `The farthest payment of a later weight: ${number(step, 2)} steps. `
        : "No later weight pays. ") : "",
      "Output error so far: ", el("strong", {}, number(loss[k])),
      k ? `; without payment ${number(other)}.` : ".");
    root.dataset.step = k;
    root.dataset.loss = loss[k];
  };
  const redraw = () => { drawPlot(); update(); };
  const control = slider("Columns quantized", 0, columns, 0, v => `${v} of ${columns}`, v => { state.step = v; update(); });
  const range = control.querySelector("input");
  const button = (text, move) => {
    const b = el("button", { type: "button" }, text);
    b.addEventListener("click", () => {
      range.value = Math.max(0, Math.min(columns, state.step + move));
      range.dispatchEvent(new Event("input"));
    });
    return b;
  };
  root.append(el("div", { class: "qfig-controls" }, control,
    choice("Later columns", ["pay (GPTQ)", "stay (RTN)"], 0,
      v => { state.way = v; update(); }),
    choice("Inputs", data.kinds.map(k => k.name), 0, v => { state.kind = v; redraw(); }),
    el("div", {}, button("Back", -1), " ", button("Next column", 1))),
  grid, plots, read,
  el("p", { class: "qfig-read" }, "Numbers: weights in steps of their row, and codes once they are rounded. Orange: moved up; blue: moved down. "
    + "Below, solid: with payment; dashed: round to nearest."));
  redraw();
});
