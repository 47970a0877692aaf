// How often each code is used, before and after a rotation.
qlab.define("rotatedlevels", (root, data) => {
  const { el, svgEl, slider, colors } = qlab;
  const narrow = root.clientWidth && root.clientWidth < 480;
  const width = narrow ? 380 : 640;
  const state = { step: data.start };
  const names = [["as they are", "before", colors[1]], ["rotated", "after", colors[0]]];
  const charts = el("div"), read = qlab.readout();
  const used = values => values.filter(v => v > 0.002).length;
  root.qlabRun = step => names.map(([, key]) => used(data.steps[step][key])); // for tests
  const first = data.codes[0], last = data.codes[data.codes.length - 1];
  const plots = names.map(([name, key, fill]) => {
    charts.append(el("p", { class: "qfig-read" }, name));
    const plot = qlab.plot({ label: `Share of each code, ${name}`, xLabel: "code", yLabel: "share (%)",
      xRange: [first - 0.6, last + 0.6], yRange: [0, 100], width, height: 190,
      xTicks: data.codes.filter(c => data.codes.length < 20 || c % 5 === 0) });
    charts.append(plot.svg);
    return { plot, key, fill };
  });
  const update = () => {
    const step = data.steps[state.step];
    for (const { plot, key, fill } of plots) {
      plot.clear();
      data.codes.forEach((code, i) => {
        const top = plot.y(100 * step[key][i]), wide = (plot.x(1) - plot.x(0)) * 0.8;
        plot.layer.append(svgEl("rect", { x: plot.x(code) - wide / 2, y: top, width: wide,
          height: Math.max(plot.y(0) - top, 0), fill }));
      });
    }
    const [a, b] = root.qlabRun(state.step);
    read.replaceChildren(`An outlier of ${data.sizes[state.step]} times the largest of the others. Codes that serve more than 0.2% of the values: `,
      el("strong", {}, String(a)), " as they are, ", el("strong", {}, String(b)), " rotated. Signal to noise: ",
      el("strong", {}, step.snr[0].toFixed(1) + " dB"), " as they are, ", el("strong", {}, step.snr[1].toFixed(1) + " dB"), " rotated.");
  };
  root.append(el("div", { class: "qfig-controls" },
    slider("The outlier reaches (times)", 0, data.sizes.length - 1, state.step, v => String(data.sizes[v]), v => { state.step = v; update(); })),
  charts, read);
  update();
});
