(() => {
  const traces = [...document.querySelectorAll(".trace")];
  const buttons = [...document.querySelectorAll("[data-verdict][aria-pressed]")];
  const family = document.getElementById("family");
  const words = document.getElementById("words");
  const count = document.getElementById("count");
  if (!words) return;
  const texts = new Map(traces.map((trace) => [trace, trace.textContent.toLowerCase()]));
  let verdict = "all";
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const trace of traces) {
      const fits = (verdict === "all" || trace.dataset.verdict === verdict)
        && (!family || !family.value || trace.dataset.family === family.value)
        && wanted.every((word) => texts.get(trace).includes(word));
      trace.hidden = !fits;
      shown += fits;
    }
    count.value = `${shown} of ${traces.length}`;
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      verdict = button.dataset.verdict;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      apply();
    });
  }
  words.addEventListener("input", apply);
  if (family) family.addEventListener("change", apply);
  apply();
})();
