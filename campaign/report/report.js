"use strict";
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = [];

  function colours(onPaper) {
    return dark.matches && !onPaper
      ? { ink: "#c9d0d8", grid: "#2f3741", line: "#59626d", hover: "#1c2229" }
      : { ink: "#3a424b", grid: "#e6eaee", line: "#a9b1ba", hover: "#ffffff" };
  }

  function layout(figure, width, onPaper) {
    const c = colours(onPaper);
    const out = JSON.parse(JSON.stringify(figure.layout));
    out.paper_bgcolor = out.plot_bgcolor = "rgba(0,0,0,0)";
    out.font = { family: "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif", size: 13, color: c.ink };
    out.hoverlabel = { bgcolor: c.hover, bordercolor: c.line, font: { color: c.ink } };
    const legend = out.showlegend ? 30 : 0;
    out.margin = { l: 60, r: 16, t: 12 + legend, b: 50 };
    out.legend = Object.assign({ orientation: "h", x: 0, xanchor: "left", y: 1, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" }, out.legend);
    out.height = figure.height || Math.max(320, Math.min(420, Math.round(width * 0.6)));
    for (const key of Object.keys(out)) {
      if (/^[xy]axis\d*$/.test(key)) {
        out[key] = Object.assign({ gridcolor: c.grid, linecolor: c.line, tickcolor: c.line, zeroline: false, showline: true, ticks: "outside", ticklen: 4, automargin: true, exponentformat: "power" }, out[key]);
        if (out[key].title) { out[key].title.standoff = 8; }
      }
    }
    return out;
  }

  function draw(onPaper) {
    for (const [node, figure] of drawn) {
      const width = node.clientWidth || 700;
      Plotly.react(node, figure.data, layout(figure, width, onPaper), { responsive: true, displaylogo: false, displayModeBar: false });
    }
  }

  for (const node of document.querySelectorAll("[data-figure]")) {
    const figure = figures[node.dataset.figure];
    if (figure) { drawn.push([node, figure]); }
  }
  draw(false);
  dark.addEventListener("change", function () { draw(false); });
  window.addEventListener("beforeprint", function () {
    for (const part of document.querySelectorAll("details")) { part.open = true; }
    draw(true);
  });
  window.addEventListener("afterprint", function () { draw(false); });
})();
