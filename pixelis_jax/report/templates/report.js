(() => {
  for (const section of document.querySelectorAll("section")) {
    const form = section.querySelector(".filters");
    if (!form) continue;
    const items = [...section.querySelectorAll(".trace")];
    const buttons = [...form.querySelectorAll("button")];
    const family = form.querySelector("select");
    const words = form.querySelector("input");
    const count = form.querySelector("output");
    const texts = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));
    let kind = "all";
    const apply = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const item of items) {
        const fits = (kind === "all" || item.dataset.kind === kind)
          && (!family || !family.value || item.dataset.family === family.value)
          && wanted.every((word) => texts.get(item).includes(word));
        item.hidden = !fits;
        shown += fits;
      }
      count.value = `${shown} of ${items.length}`;
    };
    for (const button of buttons) {
      button.addEventListener("click", () => {
        kind = button.dataset.kind;
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
        apply();
      });
    }
    words.addEventListener("input", apply);
    if (family) family.addEventListener("change", apply);
    apply();
  }
  // A link between a vote and a trace opens what it leads to, even if a filter has hidden it.
  const follow = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (!target || !target.matches("details")) return;
    target.hidden = false;
    target.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", follow);
  follow();
})();
