"use strict";
(() => {
  const dialog = document.getElementById("zoom"), zoomed = document.getElementById("zoomed");
  for (const card of document.querySelectorAll(".case")) {
    card.addEventListener("click", () => {
      zoomed.replaceChildren(...[...card.childNodes].map((node) => node.cloneNode(true)));
      zoomed.querySelectorAll(".zoom").forEach((button) => button.remove());
      dialog.classList.toggle("pixelated", card.parentElement.classList.contains("pixelated"));
      dialog.setAttribute("aria-label", `${card.getAttribute("aria-label")}, enlarged`);
      dialog.showModal();
    });
  }
  const links = [...document.querySelectorAll("nav a")];
  const places = links.map((link) => document.getElementById(link.hash.slice(1)));
  const mark = () => {
    let at = 0;
    places.forEach((place, i) => { if (i && place && place.getBoundingClientRect().top < 120) at = i; });
    links.forEach((link, i) => i === at ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"));
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
  let opened = [];
  addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("details:not([open])")]; opened.forEach((each) => { each.open = true; }); });
  addEventListener("afterprint", () => opened.forEach((each) => { each.open = false; }));
})();
