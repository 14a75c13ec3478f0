"use strict";
(() => {
  const root = document.querySelector(".pyrosys");
  const rows = [...root.querySelectorAll(".row")].map((element) => ({
    element,
    text: element.textContent.toLowerCase(),
    kinds: element.dataset.kinds.split(" "),
  }));
  const folders = [...root.querySelectorAll(".tree details")];
  const first = folders.map((folder) => folder.open);
  const tools = root.querySelector(".tools");
  const search = tools.querySelector("input");
  const count = tools.querySelector("output");
  const filters = [...root.querySelectorAll("button.kind")];
  tools.hidden = false;

  const open = (element) => {
    for (let at = element.parentElement; at !== root; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  };

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = filters.filter((f) => f.getAttribute("aria-pressed") === "true").map((f) => f.dataset.kind);
    const all = !words.length && !wanted.length;
    const full = new Set();
    let shown = 0;
    for (const { element, text, kinds } of rows) {
      const fits = words.every((w) => text.includes(w)) && (!wanted.length || wanted.some((k) => kinds.includes(k)));
      element.hidden = !fits;
      if (!fits) continue;
      shown += 1;
      for (let at = element.parentElement; at.tagName === "DETAILS" && !full.has(at); at = at.parentElement) full.add(at);
    }
    folders.forEach((folder, i) => {
      folder.hidden = !full.has(folder);
      folder.open = all ? first[i] : full.has(folder) && shown <= 400;
    });
    count.value = all ? "" : `${shown} of ${rows.length} tensors`;
  };

  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, 120);
  });
  for (const filter of filters) {
    filter.addEventListener("click", () => {
      filter.setAttribute("aria-pressed", String(filter.getAttribute("aria-pressed") !== "true"));
      show();
    });
  }
  for (const button of tools.querySelectorAll("button")) {
    button.addEventListener("click", () => folders.forEach((folder) => (folder.open = button.value === "open")));
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== search) {
      event.preventDefault();
      search.focus();
    }
  });

  let found = null;
  root.addEventListener("click", (event) => {
    const link = event.target.closest('.tree a[href^="#"]');
    const row = link && document.getElementById(link.hash.slice(1));
    if (!row) return;
    event.preventDefault();
    if (row.hidden) {
      search.value = "";
      filters.forEach((f) => f.setAttribute("aria-pressed", "false"));
      show();
      open(link);
    }
    open(row);
    found?.classList.remove("found");
    found = row;
    row.classList.add("found");
    row.scrollIntoView({ block: "nearest" });
    row.focus({ preventScroll: true });
  });

  let before = [];
  addEventListener("beforeprint", () => {
    before = folders.map((folder) => folder.open);
    if (rows.length <= 2000) folders.forEach((folder) => (folder.open = true));
  });
  addEventListener("afterprint", () => folders.forEach((folder, i) => (folder.open = before[i])));
})();
