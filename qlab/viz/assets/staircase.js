// The staircase of the affine map: scale and zero point against the range of the data.
qlab.define("staircase", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const { low, high, steps } = data;
  const kinds = ["unsigned", "signed"], roundings = ["nearest", "toward zero"];
  // Half to even, as the package rounds.
  const even = v => { const r = Math.round(v); return Math.abs(v % 1) === 0.5 && r % 2 ? r - 1 : r; };
  const range = (kind, bits) => kind === "unsigned" ? [0, 2 ** bits - 1] : [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1];
  const stair = (x, scale, zero, qmin, qmax, rounding) => {
    const whole = rounding === "nearest" ? even(x / scale) : Math.trunc(x / scale);
    return (Math.max(qmin, Math.min(qmax, whole + zero)) - zero) * scale;
  };
  root.qlabStair = stair;
  const span = high - low, from = low - 0.35 * span, to = high + 0.35 * span;
  const at = Array.from({ length: 1201 }, (_, i) => from + (to - from) * i / 1200);
  const inside = Array.from({ length: 2001 }, (_, i) => low + (high - low) * i / 2000);
  const worst = (scale, zero, qmin, qmax, rounding) =>
    Math.max(...inside.map(x => Math.abs(x - stair(x, scale, zero, qmin, qmax, rounding))));
  const fitted = (qmin, qmax) => {
    const scale = span / (qmax - qmin);
    return [scale, qmin - even(low / scale)];
  };
  const width = root.clientWidth && root.clientWidth < 480 ? 380 : 640;
  const top = qlab.plot({ label: "x̂ against x", xLabel: "x", yLabel: "x̂", xRange: [from, to], yRange: [from, to],
    width, height: 330 });
  const below = qlab.plot({ label: "Error against x", xLabel: "x", yLabel: "x − x̂", xRange: [from, to],
    yRange: [-span / 2, span / 2], width, height: 170 });
  for (const p of [top, below]) {
    const band = svgEl("rect", { x: p.x(low), width: p.x(high) - p.x(low), y: 12,
      height: (p === top ? 330 : 170) - 60, fill: "currentColor", "fill-opacity": 0.07 });
    p.layer.before(band);
  }
  const drawn = svgEl("g"), errors = svgEl("g");
  top.layer.append(path([[top.x(from), top.y(from)], [top.x(to), top.y(to)]],
    { stroke: "currentColor", "stroke-opacity": 0.5, "stroke-dasharray": "5 4", "stroke-width": 1.5 }), drawn);
  below.layer.append(errors);
  const read = qlab.readout();
  const state = { scale: Math.round(0.3 * steps), zero: 0, bits: data.bits, kind: 0, rounding: 0 };
  const clamp = v => Math.max(-span / 2, Math.min(span / 2, v));
  const update = () => {
    const scale = state.scale / steps, [qmin, qmax] = range(kinds[state.kind], state.bits);
    const rounding = roundings[state.rounding];
    const f = x => stair(x, scale, state.zero, qmin, qmax, rounding);
    drawn.replaceChildren(path(at.map(x => [top.x(x), top.y(Math.max(from, Math.min(to, f(x))))]),
      { stroke: colors[0], "stroke-width": 2.2 }));
    for (let q = qmin; q <= qmax; q++) {
      const level = (q - state.zero) * scale;
      if (level < from || level > to) continue;
      drawn.append(svgEl("circle", { cx: top.x(level), cy: top.y(level), r: q === state.zero ? 5 : 3,
        fill: q === state.zero ? colors[1] : colors[0] }));
      if (state.bits < 5 || (q - qmin) % 4 === 0) drawn.append(svgEl("text", { x: top.x(level), y: top.y(level) - 8,
        "text-anchor": "middle" }, String(q).replace("-", "−")));
    }
    errors.replaceChildren(path([[below.x(from), below.y(0)], [below.x(to), below.y(0)]],
      { stroke: "currentColor", "stroke-opacity": 0.5, "stroke-width": 1 }),
    path(at.map(x => [below.x(x), below.y(clamp(x - f(x)))]), { stroke: colors[1] }));
    const largest = worst(scale, state.zero, qmin, qmax, rounding);
    const [s, z] = fitted(qmin, qmax), least = worst(s, z, qmin, qmax, "nearest");
    read.replaceChildren(`The codes ${qmin} to ${qmax} reach from ${number((qmin - state.zero) * scale)} to `
      + `${number((qmax - state.zero) * scale)}; the data from ${number(low)} to ${number(high)}. `
      + "Largest error on the data: ", el("strong", {}, number(largest)),
    ` = ${number(largest / scale)} steps, ${number(largest / least)} times that of the formulas.`);
  };
  root.append(el("div", { class: "qfig-controls" },
    slider("Scale", 0.05 * steps, steps, state.scale, v => (v / steps).toFixed(2),
      v => { state.scale = v; update(); }),
    slider("Zero point", -16, 16, state.zero, v => "code " + String(v).replace("-", "−"),
      v => { state.zero = v; update(); }),
    slider("Bits", 2, 5, state.bits, v => v + " bits", v => { state.bits = v; update(); }),
    choice("Codes", ["unsigned, from 0", "signed, two's complement"], 0, v => { state.kind = v; update(); }),
    choice("Rounding", ["nearest, half even", "toward zero (cast)"], 0,
      v => { state.rounding = v; update(); })),
  top.svg, below.svg, read,
  el("p", { class: "qfig-read" }, "Dots: the levels, each with its code; the large one is the zero point. Dashed: x̂ = x."));
  update();
});
