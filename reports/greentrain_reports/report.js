// Tips where somebody points, legends that switch parts off, arrow keys through a picture. Without it the page still
// says everything.
(() => {
  "use strict";
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);
  let shown = null;

  const show = (mark, x, y) => {
    if (shown !== mark) {
      if (shown) shown.classList.remove("on");
      mark.classList.add("on");
      tip.textContent = mark.dataset.tip;
      tip.hidden = false;
      shown = mark;
    }
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(x + 14, room)) + window.scrollX}px`;
    const below = y + 18 + tip.offsetHeight > window.innerHeight;
    tip.style.top = `${(below ? y - tip.offsetHeight - 12 : y + 18) + window.scrollY}px`;
  };
  const hide = () => {
    if (shown) shown.classList.remove("on");
    shown = null;
    tip.hidden = true;
  };

  const marks = (plot) =>
    [...plot.querySelectorAll("[data-tip]")].filter((mark) => mark.getClientRects().length > 0 && !mark.closest("[hidden]"));

  const step = (plot, by) => {
    const all = marks(plot);
    if (!all.length) return;
    const at = all.indexOf(shown);
    const next = all[by === 0 ? 0 : at < 0 ? (by > 0 ? 0 : all.length - 1) : (at + by + all.length) % all.length];
    const box = next.getBoundingClientRect();
    show(next, box.left + box.width / 2, box.top + Math.min(box.height / 2, 60));
  };

  for (const plot of document.querySelectorAll(".plot")) {
    const point = (event) => {
      const mark = event.target.closest("[data-tip]");
      if (mark) show(mark, event.clientX, event.clientY);
      else hide();
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", hide);
    if (!plot.querySelector("[data-tip]")) continue;
    plot.tabIndex = 0;
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: 0 }[event.key];
      if (event.key === "Escape") hide();
      if (by === undefined) return;
      event.preventDefault();
      step(plot, by);
    });
  }

  // What is folded away on a screen is wanted on paper.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const part of folded) part.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const part of folded) part.open = false;
  });

  for (const legend of document.querySelectorAll(".legend")) {
    for (const entry of legend.querySelectorAll("li[data-switch]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.append(...entry.childNodes);
      entry.append(button);
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        for (const part of legend.parentElement.querySelectorAll(`svg [data-key="${entry.dataset.switch}"]`)) {
          part.style.display = on ? "" : "none";
        }
        hide();
      });
    }
  }
})();
