// Formulas are set on each page, the ones that instant navigation brings in included.
document$.subscribe(({ body }) => {
  body.querySelectorAll(".arithmatex").forEach((element) => {
    const display = element.tagName === "DIV";
    const formula = element.textContent.trim().slice(2, -2); // between \( \) or \[ \]
    katex.render(formula, element, { displayMode: display, throwOnError: false });
  });
});
