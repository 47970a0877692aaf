// Tools beside qlab: a dot for the tool, a ring for qlab, a line for full precision.
qlab.define("toolsbeside", (root, data) => {
  const { el, svgEl, choice, number, colors } = qlab;
  const width = root.clientWidth && root.clientWidth < 480 ? 400 : 640, high = 40;
  const orders = [
    ["as listed", null], ["by perplexity", (a, b) => a[1] - b[1]],
    ["by difference", (a, b) => Math.abs(b[1] / b[2] - 1) - Math.abs(a[1] / a[2] - 1)],
    ["by size", (a, b) => a[3] - b[3]]];
  const state = { order: 0, row: 0 };
  const svg = svgEl("svg", { role: "img" }), read = qlab.readout();
  const all = data.rows.flatMap(r => [r[1], r[2]]).concat(data.reference);
  const low = Math.min(...all), span = (Math.max(...all) - low) || 1;
  const x = v => 12 + (v - low) / span * (width - 24);
  const update = () => {
    const chosen = data.rows[state.row];
    const rows = [...data.rows];
    if (orders[state.order][1]) rows.sort(orders[state.order][1]);
    const tall = rows.length * high + 26;
    svg.setAttribute("viewBox", `0 0 ${width} ${tall}`);
    svg.setAttribute("aria-label", rows.map(r => `${r[0]} ${number(r[1], 4)}, qlab ${number(r[2], 4)}`).join("; "));
    svg.replaceChildren(svgEl("line", { class: "axis", x1: x(data.reference), x2: x(data.reference), y1: 4, y2: tall - 20 }));
    svg.append(svgEl("text", { x: Math.max(2, x(data.reference) - 6), y: tall - 5 }, `full precision ${number(data.reference, 4)}`));
    rows.forEach((r, i) => {
      const y = i * high + 28, bold = r === chosen;
      svg.append(svgEl("text", { x: 12, y: y - 11, "font-weight": bold ? "bold" : "normal" }, r[0]));
      svg.append(svgEl("line", { class: "grid", x1: 12, x2: width - 12, y1: y, y2: y }));
      svg.append(svgEl("circle", { cx: x(r[2]), cy: y, r: 7, fill: "none", stroke: colors[1], "stroke-width": 2 }));
      svg.append(svgEl("circle", { cx: x(r[1]), cy: y, r: bold ? 5.5 : 4, fill: colors[0] }));
    });
    const [name, theirs, ours, mb] = chosen;
    read.replaceChildren(el("strong", {}, name), `: the tool (dot) ${number(theirs, 4)}, qlab (ring) ${number(ours, 4)}, `
      + `a difference of ${((theirs / ours - 1) * 100).toFixed(2)}%. The scheme itself costs `
      + `${((ours / data.reference - 1) * 100).toFixed(2)}%. Files of ${number(mb)} MB.`);
    root.dataset.row = name;
  };
  root.append(el("div", { class: "qfig-controls" },
    choice("Tool and scheme", data.rows.map(r => r[0]), 0, v => { state.row = v; update(); }),
    choice("Order", orders.map(o => o[0]), 0, v => { state.order = v; update(); })), svg, read);
  update();
});
