const number = value => value.toLocaleString("en-US");
const plural = (count, one) => `${number(count)} ${one}${count === 1 ? "" : "s"}`;

function head() {
  const { samples, rejected } = data.totals;
  const tile = (count, what, kind) =>
    make("div", { class: `tile num ${kind || ""}` }, make("b", {}, number(count)), make("span", { class: "soft" }, count === 1 ? what.replace(/s$/, "") : what));
  page.append(
    make("h1", {}, data.dataset),
    make("p", { class: "soft" }, `${plural(samples + rejected, "sample")} looked at for ${data.flavour}` +
      (data.held_out ? ", held out and never trained on" : "") + "." +
      (rejected && !data.accepted ? " The rejected ones are not accepted yet, so nothing goes on." : "")),
    make("div", { class: "tiles" },
      tile(samples, "pairs to use", "good"), tile(rejected, "rejected", rejected ? "bad" : ""),
      tile(data.totals.warned, "with a warning", data.totals.warned ? "warn" : ""),
      tile(data.totals.captions, "captions"), tile(data.buckets.length, "target sizes"),
      tile(data.totals.alike, "near-duplicates", data.totals.alike ? "warn" : "")));
}

function thumbnail(shown) {
  return shown ? make("img", { src: shown, alt: "", loading: "lazy" }) : make("span", { class: "none", title: "no picture can be made of it" }, "∅");
}
function rejections() {
  if (!data.rejected.length) return;
  page.append(make("h2", { id: "rejected" }, "Rejected"));
  data.rejected.forEach((group, place) => {
    const rows = group.examples.map(one => make("div", { class: "row" }, thumbnail(one.thumbnail),
      make("div", {}, make("div", {}, `${one.dataset}: ${one.path}`), make("div", { class: "soft" }, one.detail))));
    if (group.count > group.examples.length)
      rows.push(make("div", { class: "row soft" }, `and ${number(group.count - group.examples.length)} more in the rejected table`));
    page.append(make("details", { class: "panel reject", ...(place === 0 ? { open: "" } : {}) },
      make("summary", {}, make("span", { class: "count num" }, number(group.count)),
        make("span", {}, make("span", { class: "code" }, group.reason), make("span", { class: "soft" }, `  ${group.meaning}`))),
      make("div", { class: "rows" }, ...rows)));
  });
}

function warnings() {
  if (!data.warnings.length) return;
  page.append(make("h2", {}, "Warnings"), make("div", { class: "panel warnings" }, ...data.warnings.map(one =>
    make("div", { class: "line" }, make("span", { class: "count num" }, number(one.count)),
      make("span", {}, make("span", { class: "code" }, one.code), make("span", { class: "soft" }, `  ${one.meaning}`))))));
}

function bars(rows, { shapes }) {
  const most = Math.max(...rows.map(row => row.count)), step = 30, from = shapes ? 142 : 92, width = innerWidth < 560 ? 310 : 520;
  const picture = draw("svg", { viewBox: `0 0 ${width} ${rows.length * step}`, role: "img", "aria-label": rows.map(row => `${row.label}: ${row.count}`).join(", ") });
  rows.forEach((row, place) => {
    const y = place * step, long = row.count && Math.max((row.count / most) * (width - from - 64), 2);
    if (shapes) {
      const scale = 22 / Math.max(row.width, row.height), w = row.width * scale, h = row.height * scale;
      picture.append(draw("rect", { class: "shape", x: 12 - w / 2, y: y + 15 - h / 2, width: w, height: h, rx: 2 }));
    }
    picture.append(draw("text", { x: from - 12, y: y + 19, "text-anchor": "end" }, row.label),
      draw("rect", { class: "bar", x: from, y: y + 7, width: long, height: 16, rx: 4 }),
      draw("text", { x: from + long + 8, y: y + 19 }, number(row.count)));
  });
  return picture;
}
function charts() {
  if (!data.totals.samples) return;
  const shown = data.buckets.slice(0, 16), rest = data.buckets.slice(16).reduce((sum, one) => sum + one.count, 0);
  page.append(make("div", { class: "two" },
    make("div", {}, make("h2", {}, "Target sizes"), make("div", { class: "panel" }, bars(shown, { shapes: true }),
      rest ? make("p", { class: "soft" }, `${plural(data.buckets.length - 16, "rarer size")} with ${number(rest)} more`) : null)),
    make("div", {}, make("h2", {}, "Caption lengths"), make("div", { class: "panel" }, bars(data.lengths, { shapes: false }),
      make("p", { class: "soft" }, data.captions)))));
}

function shot(one, kind) {
  const frame = make("div", { class: "shot" }, thumbnail(one.thumbnail));
  if (one.crop && one.thumbnail) {
    const [left, top, right, bottom] = one.crop.map(edge => edge * 100);
    frame.append(make("div", { class: "crop", title: "the part that is used",
      style: `left:${left}%; top:${top}%; width:${right - left}%; height:${bottom - top}%` }));
  }
  const sizes = `${kind || `${one.width}×${one.height}`} → ${one.size[0]}×${one.size[1]}`;
  return make("figure", {}, make("div", { class: "frame" }, frame), make("figcaption", { class: "num", title: `${one.dataset}: ${one.path}\n${sizes}` }, sizes));
}
function pictures(sample) {
  return [...sample.references.map(one => shot(one)), make("span", { class: "arrow", "aria-hidden": "true" }, "→"), shot(sample.target), sample.mask ? shot(sample.mask, "mask") : null];
}
const large = make("dialog", { id: "large", "aria-label": "One pair, large" });
function enlarge(seen, place) {
  const sample = seen[place], step = by => enlarge(seen, (place + by + seen.length) % seen.length);
  large.replaceChildren(make("div", { class: "bar-of-dialog" }, make("span", { class: "name" }, `${sample.name}   ·   ${place + 1} of ${seen.length}`),
      ...[["←", "previous", () => step(-1)], ["→", "next", () => step(1)], ["×", "close", () => large.close()]].map(([sign, label, onclick]) =>
        make("button", { class: "chip", type: "button", "aria-label": label, onclick }, sign))),
    make("div", { class: "pictures" }, ...pictures(sample).filter(Boolean)),
    ...sample.captions.map((text, order) => make("p", { class: order ? "caption more" : "caption" }, text || "(empty caption)")));
  large.onkeydown = event => { if (event.key === "ArrowLeft") step(-1); if (event.key === "ArrowRight") step(1); };
  large.onclick = event => { if (event.target === large) large.close(); };
  if (!large.open) large.showModal();
}
function card(sample, open) {
  const flags = sample.flags.map(flag => make("span", { class: "flag", title: data.meanings[flag] || "" }, flag.replaceAll("_", " ")));
  if (sample.edit !== null) flags.unshift(make("span", { class: "flag edit num", title: "how much of the picture differs visibly from the first reference" }, `${Math.round(sample.edit * 100)} % changed`));
  const [first, ...others] = sample.captions;
  return make("article", { class: "card", "data-name": sample.name },
    make("button", { class: "pictures large", type: "button", "aria-label": `Enlarge ${sample.name}`, onclick: () => open(sample) }, ...pictures(sample)),
    make("p", { class: "caption" }, first || "(empty caption)"),
    ...others.slice(0, 4).map(text => make("p", { class: "caption more" }, text)),
    others.length > 4 ? make("p", { class: "caption more" }, `and ${plural(others.length - 4, "caption")} more`) : null,
    make("div", { class: "name" }, sample.name), make("div", { class: "flags" }, ...flags));
}
function browser() {
  if (!data.samples.length) return;
  const wanted = new Set(), grid = make("div", { class: "grid", id: "grid" }), told = make("p", { class: "soft num", id: "told" });
  let shown = [];
  const open = sample => enlarge(shown, shown.indexOf(sample));
  const cards = data.samples.map(sample => ({ sample, node: card(sample, open), text: [sample.name, ...sample.captions].join("\n").toLowerCase() }));
  const search = make("input", { type: "search", id: "search", placeholder: "Name or caption", "aria-label": "Search names and captions", oninput: show });
  const order = make("select", { id: "order", "aria-label": "Order", onchange: show },
    ...[["name", "by name"], ["least", "least changed first"], ["most", "most changed first"]].map(([value, text]) => make("option", { value }, text)));
  const counts = new Map();
  data.samples.forEach(sample => sample.flags.forEach(flag => counts.set(flag, (counts.get(flag) || 0) + 1)));
  const chips = [...counts].map(([flag, count]) => make("button", { class: "chip num", type: "button", "data-flag": flag, "aria-pressed": "false",
    title: data.meanings[flag] || "", onclick: event => {
      if (!wanted.delete(flag)) wanted.add(flag);
      event.currentTarget.setAttribute("aria-pressed", wanted.has(flag));
      show();
    } }, `${flag.replaceAll("_", " ")} ${count}`));
  function show() {
    const words = search.value.toLowerCase().trim();
    const seen = cards.filter(one => one.text.includes(words) && [...wanted].every(flag => one.sample.flags.includes(flag)));
    const sign = { least: 1, most: -1 }[order.value];
    if (sign) seen.sort((one, two) => (one.sample.edit === null) - (two.sample.edit === null) || sign * (one.sample.edit - two.sample.edit));
    shown = seen.map(one => one.sample);
    grid.replaceChildren(...(seen.length ? seen.map(one => one.node) : [make("div", { class: "empty" }, "Nothing matches.")]));
    told.textContent = `${plural(seen.length, "pair")} shown. ${data.rule}`;
  }
  page.append(make("h2", {}, "Pairs"), make("div", { class: "controls" }, search, order, ...chips), told, grid, large);
  show();
}
function alike() {
  if (!data.alike.length) return;
  const rest = data.alike_groups - data.alike.length;
  page.append(make("h2", {}, "Near-duplicates"), make("div", { class: "panel" },
    make("p", { class: "soft" }, "Targets that look the same, though their files may differ."),
    make("div", { class: "rows wide" }, ...data.alike.map(group => make("div", { class: "row" }, make("div", {}, group.join("   ·   "))))),
    rest ? make("p", { class: "soft" }, `and ${plural(rest, "group")} more`) : null));
}
head(); rejections(); warnings(); charts(); browser(); alike();
