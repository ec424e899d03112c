"use strict";
(function () {
  // A number as the report writes it: a sign, decimals, a percentage. Anything else is text.
  function asNumber(text) {
    var match = /^([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?: %)?$/i.exec(text.trim());
    return match ? parseFloat(match[1]) : NaN;
  }
  function compare(a, b) {
    var x = asNumber(a), y = asNumber(b);
    if (!isNaN(x) && !isNaN(y)) { return x - y; }
    if (isNaN(x) !== isNaN(y)) { return isNaN(x) ? 1 : -1; }
    return a.localeCompare(b);
  }
  function sort(table, place, header) {
    var down = header.getAttribute("aria-sort") === "ascending";
    var body = table.tBodies[0];
    var rows = Array.prototype.slice.call(body.rows);
    rows.sort(function (a, b) { return (down ? -1 : 1) * compare(a.cells[place].textContent, b.cells[place].textContent); });
    rows.forEach(function (row) { body.appendChild(row); });
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (cell) { cell.removeAttribute("aria-sort"); });
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
  }
  Array.prototype.forEach.call(document.querySelectorAll("table"), function (table) {
    if (table.tBodies[0].rows.length < 2) { return; }
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (header, place) {
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      // Printed pages repeat the header as text, since a browser repeats no buttons.
      var plain = document.createElement("span");
      plain.className = "plain";
      plain.textContent = header.textContent;
      header.textContent = "";
      header.appendChild(button);
      header.appendChild(plain);
      button.addEventListener("click", function () { sort(table, place, header); });
    });
  });
  Array.prototype.forEach.call(document.querySelectorAll("input[data-table]"), function (input) {
    var rows = document.getElementById(input.getAttribute("data-table")).tBodies[0].rows;
    var count = document.getElementById(input.id.replace("-search", "-count"));
    input.addEventListener("input", function () {
      var wanted = input.value.toLowerCase(), shown = 0;
      Array.prototype.forEach.call(rows, function (row) {
        var fits = row.textContent.toLowerCase().indexOf(wanted) >= 0;
        row.hidden = !fits;
        shown += fits ? 1 : 0;
      });
      count.textContent = wanted ? shown + " of " + rows.length + " rows" : "";
    });
  });
})();
