"use strict";
(() => {
  const $ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const cards = $(".case[data-outcome]"), still = matchMedia("(prefers-reduced-motion:reduce)");
  $(".script").forEach((element) => { element.hidden = false; });

  // -- dark or light: what the system says, or what was chosen; a frame may keep no choice
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme:dark)");
  const paint = (scheme) => { root.style.colorScheme = scheme; };
  const theme = () => {
    const now = root.style.colorScheme || (dark.matches ? "dark" : "light"), next = now === "dark" ? "light" : "dark";
    paint(next);
    try { localStorage.setItem("robustcv-theme", next); } catch { /* not kept */ }
  };
  try { paint(localStorage.getItem("robustcv-theme") || ""); } catch { /* none kept */ }
  byId("theme").addEventListener("click", theme);

  // -- which cases are shown: the choice stands in the address, so that it can be cited
  const form = byId("filters"), told = byId("shown");
  let fixed = ""; // the wrong class asked for by a link from the confusion flows
  const fields = form ? $("select", form) : [];
  const visible = () => cards.filter((card) => !card.hidden);
  const apply = () => {
    const chosen = fields.filter((field) => field.value);
    const wanted = new URLSearchParams(chosen.map((field) => [field.name, field.value]));
    if (fixed) wanted.set("as", fixed);
    for (const card of cards) card.hidden = [...wanted].some(([name, value]) => card.dataset[name] !== value);
    const left = visible();
    rove(left[0]);
    if (told) told.textContent = `${left.length} of ${cards.length} shown${fixed ? `, taken for ${fixed}` : ""}`;
    return wanted;
  };
  const fromAddress = () => {
    const text = location.hash.slice(1), folded = text && byId(text)?.closest("details");
    if (folded) folded.open = true;
    if (!text.includes("=")) return;
    if (!form) { byId("cases")?.scrollIntoView(); return; }
    const asked = new URLSearchParams(text);
    for (const field of fields) {
      const value = asked.get(field.name) || "";
      field.value = [...field.options].some((option) => option.value === value) ? value : "";
    }
    fixed = asked.get("as") || "";
    apply();
    byId("cases").scrollIntoView();
  };
  form?.addEventListener("change", () => {
    fixed = "";
    const text = apply().toString();
    try { history.replaceState(null, "", `#${text || "cases"}`); } catch { /* a frame may forbid it */ }
  });
  form?.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", fromAddress);

  // -- one stop of the Tab key for all cases; j, k and arrows move between them
  const button = (card) => card?.querySelector(".zoom");
  const rove = (card) => cards.forEach((each) => button(each)?.setAttribute("tabindex", each === card ? "0" : "-1"));
  const step = (by) => {
    const left = visible();
    if (!left.length) return;
    const at = left.indexOf(document.activeElement?.closest?.(".case"));
    const next = left[at < 0 ? 0 : Math.min(Math.max(at + by, 0), left.length - 1)];
    rove(next);
    button(next).focus();
    next.scrollIntoView({ block: "nearest" });
  };

  // -- a case, enlarged: all panels, or clean and attacked side by side, under a slider, or in turn
  const dialog = byId("zoom"), stage = byId("zoomed"), modes = byId("modes"), keys = byId("keys");
  let open = null, timer = 0;
  const source = (kind) => open.querySelector(`[data-kind="${kind}"] img`);
  const picture = (kind) => {
    const image = source(kind).cloneNode();
    image.removeAttribute("style");
    return image;
  };
  const captioned = (kind) => make("figure", { class: "panel" }, picture(kind), open.querySelector(`[data-kind="${kind}"] figcaption`).cloneNode(true));
  const ranged = (label, least, most, value, onInput) => {
    const input = make("input", { type: "range", min: least, max: most, step: "any", value });
    const output = make("output");
    const change = () => { output.textContent = ` ${onInput(Number(input.value))}`; };
    input.addEventListener("input", change);
    change();
    return make("label", { class: "range" }, `${label} `, input, output);
  };
  const drawn = {
    panels: () => [...open.childNodes].map((node) => node.cloneNode(true)),
    beside: () => [make("div", { class: "beside" }, captioned("clean"), captioned("attacked"))],
    slider: () => {
      const over = picture("attacked");
      const range = ranged("clean · attacked", 0, 100, 50, (value) => { over.style.clipPath = `inset(0 0 0 ${value}%)`; return `${Math.round(value)} % clean`; });
      return [make("div", { class: "stack" }, picture("clean"), over), range];
    },
    blink: () => {
      const over = picture("attacked"), which = make("output", { class: "which" });
      const swap = () => { over.hidden = !over.hidden; which.textContent = over.hidden ? "clean" : "attacked"; };
      const button = make("button", { type: "button" }, "swap");
      button.addEventListener("click", swap);
      swap();
      if (!still.matches) timer = setInterval(swap, 500); // one full blink a second; three is where harm begins
      return [make("div", { class: "stack" }, picture("clean"), over), make("p", {}, button, " ", which)];
    },
    change: () => {
      const image = picture("change"), factor = Number(source("change").closest("figure").dataset.factor);
      const range = ranged("amplified", 1, 4 * factor, factor, (value) => { image.style.filter = `contrast(${value / factor})`; return `×${Math.round(value)}`; });
      return [make("div", { class: "stack" }, image), range];
    },
  };
  const show = (mode) => {
    clearInterval(timer);
    const can = mode === "panels" || open.querySelector('[data-kind="attacked"]');
    const now = can ? mode : "panels";
    stage.replaceChildren(...drawn[now]());
    const facts = open.querySelector(".meta").firstChild.textContent.split(" · ");
    if (now !== "panels") stage.append(make("ul", { class: "meta" }, ...facts.map((fact) => make("li", {}, fact.trim()))));
    $(".zoom", stage).forEach((each) => each.remove());
    $("button", modes).forEach((each) => {
      each.setAttribute("aria-pressed", String(each.value === now));
      each.disabled = each.value !== "panels" && !open.querySelector('[data-kind="attacked"]');
    });
  };
  const enlarge = (card) => {
    open = card;
    if (cards.includes(card)) rove(card);
    dialog.classList.toggle("pixelated", card.parentElement.classList.contains("pixelated"));
    dialog.setAttribute("aria-label", `${card.getAttribute("aria-label")}, enlarged`);
    byId("title").textContent = card.getAttribute("aria-label");
    show($('[aria-pressed="true"]', modes)[0]?.value || "panels");
    if (!dialog.open) dialog.showModal();
  };
  const turn = (by) => {
    const left = visible(), next = cards.includes(open) && left[left.indexOf(open) + by];
    if (next) enlarge(next);
  };
  $(".case").forEach((card) => card.addEventListener("click", () => enlarge(card)));
  modes?.addEventListener("click", (event) => { if (event.target.value) show(event.target.value); });
  dialog.addEventListener("close", () => { clearInterval(timer); stage.replaceChildren(); button(open)?.focus(); });

  // -- keys; they can be switched off where they collide with a reader's own
  const openKeys = () => keys.showModal();
  byId("help")?.addEventListener("click", openKeys);
  const section = (by) => {
    const all = $("section.card"), at = all.findIndex((each) => each.getBoundingClientRect().top > 60);
    const now = at < 0 ? all.length : at;
    all[Math.min(Math.max(by > 0 ? now : now - 2, 0), all.length - 1)]?.scrollIntoView();
  };
  const details = () => {
    const all = $("main details"), closed = all.some((each) => !each.open);
    all.forEach((each) => { each.open = closed; });
  };
  const bindings = { j: () => step(1), k: () => step(-1), n: () => section(1), p: () => section(-1), d: details, t: theme, "/": () => fields[0]?.focus(), "?": openKeys };
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input:not([type=range]):not([type=checkbox]),select,textarea");
    if (event.ctrlKey || event.altKey || event.metaKey || typing) return;
    if (dialog.open) {
      const mode = $("button", modes)[Number(event.key) - 1];
      if (event.target.type !== "range" && event.key === "ArrowRight") turn(1);
      else if (event.target.type !== "range" && event.key === "ArrowLeft") turn(-1);
      else if (mode && !mode.disabled && byId("use-keys").checked) show(mode.value);
      return;
    }
    if (keys.open) return;
    const arrow = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (arrow && event.target.classList?.contains("zoom")) step(arrow);
    else if (bindings[event.key] && byId("use-keys").checked) bindings[event.key]();
    else return;
    event.preventDefault();
  });

  // -- tables that can be sorted and searched
  for (const table of $("table.sortable")) {
    const section = table.closest("section"), search = section.querySelector(".search input");
    $("thead th", table).forEach((head, column) => {
      const sort = make("button", { type: "button" }, head.textContent);
      head.replaceChildren(sort);
      sort.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        $("thead th", table).forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const order = (a, b) => (a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : a === "" ? -1 : b === "" ? 1 : a.localeCompare(b));
        const bodies = $("tbody", section), counts = bodies.map((each) => each.rows.length); // a list may be folded
        const sorted = $("tbody tr", section).sort((a, b) => (down ? -1 : 1) * order(value(a), value(b)));
        bodies.forEach((each, i) => each.append(...sorted.splice(0, counts[i])));
      });
    });
    search?.addEventListener("input", () => {
      const text = search.value.toLowerCase();
      for (const row of $("tbody tr", section)) row.hidden = !row.textContent.toLowerCase().includes(text);
      if (text) $("details", section).forEach((each) => { each.open = true; });
    });
  }

  // -- every table with a head as CSV: raw shares beside n and interval, where the cell knows them
  const cell = (text) => {
    const plain = /^-?\d{1,3}(,\d{3})+$/.test(text) ? text.replaceAll(",", "") : text; // 5,000 is a number
    const harmless = /^[+-][\d.,]+(e[+-]\d+)?( (%|pp|s|ms))?( \([\d.,+−– to%]*\))?$/.test(plain);
    const safe = /^[=+\-@'＝＋－＠\t]/.test(plain) && !harmless ? `'${plain}` : plain; // else a spreadsheet would run it
    return /[",;\t\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const csv = (table) => {
    const rows = [...table.rows], flat = (each) => each.textContent.replace(/\s+/g, " ").trim();
    const told = [...rows[0].cells].map((_, k) => rows.some((row) => row.cells[k]?.dataset.n));
    const line = (row) => [...row.cells].flatMap((each, k) => {
      const text = flat(each), { value, n = "", ciLow = "", ciHigh = "" } = each.dataset;
      if (each.querySelector("img") || rows[1]?.cells[k]?.querySelector("img")) return [];
      if (!told[k]) return [value === undefined || each.querySelector("small") ? text : value];
      return row === rows[0] ? [text, `${text}: n`, `${text}: CI low`, `${text}: CI high`] : [value ?? text, n, ciLow, ciHigh];
    });
    return "\ufeff" + rows.map((row) => line(row).map(cell).join(",") + "\n").join(""); // else Excel garbles umlauts
  };
  $("main .scroll table").filter((table) => table.tHead).forEach((table, k) => {
    const save = make("button", { type: "button", class: "csv" }, "CSV"), section = table.closest("section");
    save.setAttribute("aria-label", `${table.parentElement.getAttribute("aria-label")}, as CSV`);
    save.addEventListener("click", () => {
      const href = URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" }));
      make("a", { href, download: `${section.id}-${k + 1}.csv` }).click();
      URL.revokeObjectURL(href);
    });
    table.parentElement.after(save);
  });

  // -- the command, to be pasted
  const command = $("#reproduce th").find((each) => each.textContent.trim() === "command")?.nextElementSibling;
  if (command && navigator.clipboard) {
    const text = command.textContent.trim(), copy = make("button", { type: "button", class: "copy" }, "copy");
    copy.addEventListener("click", () => navigator.clipboard.writeText(text).then(() => { copy.textContent = "copied"; }, () => {}));
    command.append(" ", copy);
  }

  // -- where in the page one is
  const links = $("nav a"), places = links.map((link) => byId(link.hash.slice(1)));
  const mark = () => {
    let at = 0;
    places.forEach((place, i) => { if (i && place && place.getBoundingClientRect().top < 120) at = i; });
    links.forEach((link, i) => i === at ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"));
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
  rove(cards[0]);
  fromAddress();

  // -- printing everything opens what is folded
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = byId("whole").checked ? $("main details:not([open])") : [];
    opened.forEach((each) => { each.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((each) => { each.open = false; }));
})();
