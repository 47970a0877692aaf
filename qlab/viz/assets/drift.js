// Delay of an alarm against the chance of a false one.
qlab.define("drift", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const narrow = root.clientWidth && root.clientWidth < 480;
  const state = { window: data.start[0], drift: data.start[1], limit: data.start[2] };
  const at = (w, d, l) => ({ falseAlarm: data.false[data.windows[w]][l], delay: data.delay[data.windows[w]][d][l] });
  root.qlabRun = at; // for tests
  const p = qlab.plot({ label: "Readings until the alarm against the chance of a false alarm",
    xLabel: `chance of a false alarm within ${data.horizon} readings (%)`, yLabel: "readings until the alarm",
    xRange: [0, 100], yRange: [1, data.horizon], yLog: true, width: narrow ? 380 : 640, height: 330 });
  const read = qlab.readout();
  const key = el("p", { class: "qfig-read" });
  data.windows.forEach((w, i) => {
    const mark = svgEl("svg", { viewBox: "0 0 14 10", style: "display:inline-block;width:14px;height:10px", "aria-hidden": "true" });
    mark.append(svgEl("rect", { width: 14, height: 10, fill: colors[i] }));
    key.append(i ? "  " : "Averaged: ", mark, ` ${w}`);
  });
  const update = () => {
    p.clear();
    data.windows.forEach((_, w) => {
      const points = data.limits.map((_, l) => at(w, state.drift, l)).filter(v => v.delay !== null)
        .map(v => [p.x(100 * v.falseAlarm), p.y(v.delay)]);
      if (points.length) p.layer.append(path(points, { stroke: colors[w], "stroke-width": w === state.window ? 3 : 1.5,
        "stroke-opacity": w === state.window ? 1 : 0.6 }));
    });
    const now = at(state.window, state.drift, state.limit);
    if (now.delay !== null) p.layer.append(svgEl("circle", { cx: p.x(100 * now.falseAlarm), cy: p.y(now.delay), r: 7,
      fill: "none", stroke: "currentColor", "stroke-width": 2.5 }));
    const w = data.windows[state.window];
    read.replaceChildren(`Limit ${data.limits[state.limit]}, ${w === 1 ? "every reading by itself" : "means of " + w + " readings"}: `,
      "a drift of ", el("strong", {}, `${data.drifts[state.drift]} sd`), " rings after ",
      el("strong", {}, now.delay === null ? `more than ${data.horizon}` : String(now.delay)), " readings (median); without drift it rings within ",
      `${data.horizon} with chance `, el("strong", {}, `${number(100 * now.falseAlarm)}%`), ".");
  };
  root.append(el("div", { class: "qfig-controls" },
    slider("Drift", 0, data.drifts.length - 1, state.drift, v => `${data.drifts[v]} sd`, v => { state.drift = v; update(); }),
    choice("Readings averaged", data.windows.map(w => w === 1 ? "1: none" : String(w)), state.window, v => { state.window = v; update(); }),
    slider("Limit", 0, data.limits.length - 1, state.limit, v => String(data.limits[v]), v => { state.limit = v; update(); })),
  key, p.svg, read);
  update();
});
