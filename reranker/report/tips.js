// What a point of a figure stands for, beside it while it is pointed at or has the focus.
(() => {
  "use strict";
  const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
  tip.setAttribute("aria-hidden", "true");  // the point's own label says the same
  document.body.append(tip);

  function show(event) {
    const point = event.target.closest?.(".point");
    tip.hidden = !point;
    if (!point) return;
    tip.textContent = point.getAttribute("aria-label");
    const box = point.getBoundingClientRect();
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${scrollX + Math.max(8, Math.min(box.x + box.width / 2 - tip.offsetWidth / 2, room))}px`;
    tip.style.top = `${scrollY + box.y - tip.offsetHeight - 6}px`;
  }

  for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, show);
  document.addEventListener("focusout", () => { tip.hidden = true; });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
})();
