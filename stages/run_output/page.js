const colours = [0, 1, 2, 3, 4, 5].map(number => `var(--c${number})`);
document.title = `${data.title} · qedit`;
const last = curve => curve && curve.length ? curve[curve.length - 1][1] : null;
function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3)));
}
function duration(seconds) {
  if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}
function smoothed(curve, weight) {
  let mean = 0, share = 0;
  return curve.map(([step, value]) => {
    mean = weight * mean + (1 - weight) * value; share = weight * share + (1 - weight);
    return [step, mean / share];
  });
}
const median = values => values.length ? [...values].sort((one, two) => one - two)[values.length >> 1] : null;

function head() {
  const { curves, steps } = data, done = steps.done, of = Math.max(steps.of || done, done);
  const pace = median((curves.seconds || []).slice(-100).map(point => point[1]));
  const pairs = Object.values(data.datasets).reduce((sum, one) => sum + one.pairs, 0);
  const tile = (value, what) => value === null || value === undefined ? null : make("div", { class: "tile num" }, make("b", {}, value), make("span", {}, what));
  const held = curves.held_out || [];
  const best = held.length ? held.reduce((one, two) => two[1] < one[1] ? two : one) : null;
  const memory = last(curves.memory_bytes);
  page.append(
    make("h1", {}, data.title),
    make("p", { class: "soft" }, data.about.filter(Boolean).join("  ·  ") + (data.updated ? `  ·  ${data.updated}` : "")),
    make("div", { class: "bar", role: "progressbar", "aria-valuenow": done, "aria-valuemax": of, "aria-label": "steps" }, make("div", { style: `width:${of ? 100 * done / of : 0}%` })),
    make("div", { class: "tiles" },
      tile(`${done.toLocaleString("en-US")}`, `of ${of.toLocaleString("en-US")} steps`),
      tile(curves.loss ? short(last(smoothed(curves.loss, .95))) : null, "loss, smoothed"),
      best ? tile(short(last(held)), `held out; best ${short(best[1])} at ${best[0]}`) : null,
      pace === null ? null : tile(duration(pace), "a step"),
      pace === null || done >= of ? null : tile(duration(pace * (of - done)), "to go"),
      memory === null ? null : tile(`${(memory / 1e9).toFixed(1)} GB`, "memory"),
      tile(pairs ? pairs.toLocaleString("en-US") : null, pairs === 1 ? "pair" : "pairs")));
}

function previews() {
  const samples = data.samples.filter(sample => Object.keys(sample.frames).length);
  if (!samples.length) return;
  const steps = [...new Set(samples.flatMap(sample => Object.values(sample.frames).flatMap(frames => Object.keys(frames).map(Number))))].sort((one, two) => one - two);
  const chosen = { place: steps.length - 1, before: "reference", after: "now" };
  const slider = make("input", { type: "range", id: "step", min: 0, max: steps.length - 1, value: chosen.place, "aria-label": "step of the previews",
    oninput: () => { chosen.place = Number(slider.value); show(); } });
  const stepName = make("span", { id: "step-name", class: "num" });
  const choice = (key, options) => {
    const buttons = options.map(([value, text]) => make("button", { type: "button", "data-choice": `${key}-${value}`, onclick: () => { chosen[key] = value; press(); show(); } }, text));
    const press = () => buttons.forEach((button, place) => button.setAttribute("aria-pressed", options[place][0] === chosen[key]));
    press();
    return make("div", { class: "choice", role: "group", "aria-label": key }, ...buttons);
  };
  const has = part => samples.some(sample => sample.frames[part]);
  const befores = [["reference", "reference"], ...(has("base") ? [["base", "base model"]] : []), ["target", "target"]];
  const cards = samples.map(sample => {
    const before = make("img", { alt: "before" }), after = make("img", { alt: "after", class: "after" });
    const none = make("div", { class: "none" }, "no picture yet");
    const left = make("span", { class: "tag left" }), right = make("span", { class: "tag right num" });
    const wipe = make("input", { type: "range", min: 0, max: 1000, value: 500, "aria-label": `wipe between before and after, ${sample.name}`,
      oninput: () => box.style.setProperty("--at", `${wipe.value / 10}%`) });
    const box = make("div", { class: "wipe", style: `--at: 50%; --ratio: ${sample.size[0] / sample.size[1]}` }, none, before, after, left, right, make("div", { class: "edge" }), wipe);
    const told = make("div", { class: "name num" });
    const small = [...sample.references.map((link, place) => [link, sample.references.length > 1 ? `reference ${place + 1}` : "reference"]), [sample.target, "target"]].filter(one => one[0]);
    const node = make("article", { class: "card", "data-name": sample.name }, make("div", { class: "stage" }, box),
      make("div", { class: "thumbs" }, ...small.map(([link, text]) => make("figure", {}, make("img", { src: link, alt: text, loading: "lazy" }), make("figcaption", {}, text)))),
      make("div", { class: "text" }, make("p", { class: "caption" }, sample.caption || "(empty caption)"), make("div", { class: "name" }, sample.name), told));
    return { sample, node, before, after, left, right, told };
  });
  // sides are rounded to 32 pixels: a picture of nearly the size's ratio is stretched, as the model sees it
  const ratioFits = (picture, [width, height]) => picture.naturalWidth &&
    Math.abs(Math.log(picture.naturalWidth / picture.naturalHeight * height / width)) < .02 + Math.log((1 + 16 / width) * (1 + 16 / height));
  function put(picture, link, size) {
    picture.hidden = !link;
    if (link && picture.src !== link) picture.src = link;
    const fit = () => { picture.style.objectFit = ratioFits(picture, size) ? "fill" : "contain"; };
    if (picture.complete) fit(); else picture.onload = fit;
  }
  function show() {
    const step = steps[chosen.place];
    stepName.textContent = step ? `step ${step.toLocaleString("en-US")}` : "base model";
    for (const one of cards) {
      const { sample } = one, frames = sample.frames;
      const shown = step ? (frames[chosen.after] || frames.now || {})[step] : (frames.base || {})[0];
      const before = chosen.before === "base" ? (frames.base || {})[0] : chosen.before === "target" ? sample.target : sample.references[0];
      put(one.before, before, sample.size); put(one.after, shown, sample.size);
      one.left.textContent = befores.find(option => option[0] === chosen.before)[1];
      one.right.textContent = step ? `${stepName.textContent}${chosen.after === "ema" ? ", EMA" : ""}` : "base model";
      const drift = (data.drift[sample.name] || []).find(found => found.step === step);
      one.told.textContent = drift && drift.scale ? `shift ${drift.shift_x.toFixed(1)}, ${drift.shift_y.toFixed(1)} px · scale ${drift.scale.toFixed(3)} · ${(100 * drift.outside).toFixed(1)} % changed outside the edit` : "";
    }
  }
  page.append(make("h2", {}, "Previews"),
    make("div", { class: "controls" }, make("div", { class: "slide" }, stepName, slider), choice("before", befores),
      has("ema") ? choice("after", [["now", "weights"], ["ema", "average"]]) : null),
    make("div", { class: "samples" }, ...cards.map(one => one.node)));
  show();
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(times => times * power).find(size => size >= rough);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return found;
}
function chart({ title, series, zero = true, least = 0, note = null, extra = null, format = short }) {
  const drawn = series.filter(one => one.points.length);
  if (!drawn.length) return null;
  const told = make("div", { class: "told num" }, note || "");
  const svg = draw("svg", { role: "img", "aria-label": title });
  const legend = drawn.length > 1 ? make("div", { class: "legend" }, ...drawn.filter(one => one.name).map(one => make("span", {}, make("i", { style: `background:${one.colour}` }), one.name))) : null;
  const node = make("div", { class: "panel chart", "data-chart": title }, make("div", { class: "head" }, make("h3", {}, title), extra), told, svg, legend);
  let scale = null;
  function render() {
    const width = svg.clientWidth || 400, height = Math.max(150, Math.min(230, width * .5)), left = 46, right = 6, top = 6, bottom = 22;
    const xs = drawn.flatMap(one => one.points.map(point => point[0])), ys = drawn.flatMap(one => one.points.map(point => point[1]));
    let x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = Math.min(...ys), y1 = Math.max(...ys);
    if (zero) { y0 = Math.min(0, y0); y1 = Math.max(0, y1); }
    const spare = Math.max((y1 - y0) * .06, (least - (y1 - y0)) / 2, 1e-12);
    y1 += spare; if (!zero || y0 < 0) y0 -= spare;
    if (x0 === x1) { x0 -= 1; x1 += 1; }
    const x = value => left + (value - x0) / (x1 - x0) * (width - left - right);
    const y = value => top + (y1 - value) / (y1 - y0) * (height - top - bottom);
    scale = { x, y, x0, x1, left, right, width, height, top, bottom };
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`); svg.setAttribute("height", height);
    svg.replaceChildren();
    for (const value of ticks(y0, y1, 4)) svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }), draw("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, format(value)));
    const across = ticks(x0, x1, Math.max(2, Math.floor(width / 110))).filter(Number.isInteger);
    for (const value of across) svg.append(draw("text", { x: x(value), y: height - 4, "text-anchor": x(value) > width - 30 ? "end" : "middle" }, value.toLocaleString("en-US")));
    for (const one of drawn) {
      const path = one.points.map((point, place) => `${place ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");
      svg.append(draw("path", one.faint ? { class: "faint", d: path } : { d: path, style: `stroke:${one.colour}` }));
      if (one.dots || one.points.length === 1) for (const point of one.points) svg.append(draw("circle", { cx: x(point[0]), cy: y(point[1]), r: 3, style: `fill:${one.colour}` }));
    }
  }
  function point(event) {
    if (!scale) return;
    const at = scale.x0 + (event.clientX - svg.getBoundingClientRect().left - scale.left) / (scale.width - scale.left - scale.right) * (scale.x1 - scale.x0);
    const found = drawn.map(one => [one, one.points.reduce((best, now) => Math.abs(now[0] - at) < Math.abs(best[0] - at) ? now : best)]);
    const step = found.reduce((best, now) => Math.abs(now[1][0] - at) < Math.abs(best[1][0] - at) ? now : best)[1][0];
    told.textContent = `step ${step.toLocaleString("en-US")}: ` + found.filter(one => !one[0].faint || drawn.length === 1).map(([one, near]) => `${one.name && drawn.length > 1 ? one.name + " " : ""}${format(near[1])}`).join(" · ");
    svg.querySelectorAll(".cross").forEach(line => line.remove());
    svg.append(draw("line", { class: "cross", x1: scale.x(step), x2: scale.x(step), y1: scale.top, y2: scale.height - scale.bottom }));
  }
  svg.addEventListener("pointermove", point); svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", () => { svg.querySelectorAll(".cross").forEach(line => line.remove()); told.textContent = note || ""; });
  new ResizeObserver(() => requestAnimationFrame(() => { if (svg.clientWidth !== scale?.width) render(); })).observe(node);
  node.redraw = render;
  return node;
}
function lossChart() {
  const loss = data.curves.loss || [], held = data.curves.held_out || [];
  const lines = [{ name: "", points: loss, faint: true }, { name: "training, smoothed", points: smoothed(loss, .95), colour: colours[0] }, { name: "held out", points: held, colour: colours[1], dots: true }];
  const slider = make("input", { type: "range", id: "smoothing", min: 0, max: 99, value: 95, "aria-label": "smoothing of the loss", oninput: () => { lines[1].points = smoothed(loss, slider.value / 100); node.redraw(); } });
  const node = chart({ title: "Loss", series: lines, zero: false, extra: make("label", { class: "smooth" }, "smoothing", slider) });
  return node;
}
const manyLines = curves => Object.entries(curves).map(([name, points], place) => ({ name, points, colour: colours[place % colours.length] }));
function drifts(value, note) {
  return Object.entries(data.drift).map(([name, found], place) => ({ name, colour: colours[place % colours.length], dots: true,
    points: found.filter(one => one.scale).map(one => [one.step, value(one)]) }));
}
function charts() {
  const { curves, sigma } = data;
  const one = (name, points) => [{ name, points: points || [], colour: colours[0] }];
  const nodes = [
    lossChart(),
    chart({ title: "Held-out loss by sigma", series: manyLines(sigma.held_out).map(line => ({ ...line, dots: true })), zero: false }),
    chart({ title: "Loss by sigma", series: manyLines(sigma.training).map(line => ({ ...line, points: smoothed(line.points, .9) })), zero: false, note: "smoothed" }),
    chart({ title: "Learning rate", series: one("", curves.lr) }),
    chart({ title: "Gradient norm", series: one("", curves.grad_norm) }),
    chart({ title: "Seconds a step", series: [...one("step", curves.seconds), { name: "of it waiting for data", points: curves.data_wait_seconds || [], colour: colours[1] }] }),
    chart({ title: "Memory, GB", series: one("", (curves.memory_bytes || []).map(([step, value]) => [step, value / 1e9])) }),
  ].filter(Boolean);
  if (nodes.length) page.append(make("h2", {}, "Curves"), make("div", { class: "charts" }, ...nodes));
  nodes.forEach(node => node.redraw());
  const drift = [
    chart({ title: "Shift, pixels", series: drifts(found => Math.hypot(found.shift_x, found.shift_y)), least: 1 }),
    chart({ title: "Scale", series: drifts(found => found.scale), zero: false, least: .01, format: value => value.toFixed(3) }),
    chart({ title: "Changed outside the edit, %", series: drifts(found => 100 * found.outside) }),
  ].filter(Boolean);
  if (drift.length) page.append(make("h2", {}, "Alignment"), make("p", { class: "soft" }, "How far each preview lies from its reference, and how much of it changed where nothing was to change: outside the sample's mask, or where target and reference are alike. A shift or a zoom that grows is drift."), make("div", { class: "charts" }, ...drift));
  drift.forEach(node => node.redraw());
}

function details() {
  const datasets = Object.entries(data.datasets), prints = Object.entries(data.fingerprints);
  const cells = (tag, values) => make("tr", {}, ...values.map(value => make(tag, { class: "num" }, String(value))));
  const copy = make("button", { type: "button", onclick: () => { navigator.clipboard && navigator.clipboard.writeText(data.command); copy.textContent = "Copied"; } }, "Copy");
  page.append(make("h2", {}, "This run again"), make("div", { class: "command" }, make("pre", { id: "command" }, data.command), copy));
  if (datasets.length) page.append(make("h2", {}, "Data"), make("div", { class: "panel scroll" }, make("table", {},
    cells("th", ["from step", "dataset", "pairs", "repeats", "fingerprint"]), ...data.history.flatMap(entry => Object.entries(entry.datasets).map(([name, one]) => cells("td", [entry.from_step, name, one.pairs, one.repeats ?? 0, one.digest]))))));
  if (prints.length) page.append(make("details", {}, make("summary", { class: "soft" }, "What the model and the cached rows are, by fingerprint"), make("div", { class: "panel scroll" }, make("table", {}, ...prints.map(pair => cells("td", pair))))));
  page.append(make("h2", {}, "Configuration"), ...Object.entries(data.files).map(([name, text], place) => make("details", place ? {} : { open: "" }, make("summary", { class: "soft" }, name), make("pre", {}, text))));
  if (data.links.length) page.append(make("h2", {}, "Files"), make("div", { class: "links" }, ...data.links.map(([name, link]) => make("a", { href: encodeURI(link) }, name))));
}
head(); previews(); charts(); details();
