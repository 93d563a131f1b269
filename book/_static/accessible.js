// Roles that docutils leaves out: entries of a bibliography are items of its list, and so are a signature's parameters.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".citation-list > .citation").forEach((entry) => entry.setAttribute("role", "listitem"));
  for (const list of document.querySelectorAll("dt.sig dl")) {
    list.setAttribute("role", "list");
    list.querySelectorAll("dd").forEach((parameter) => parameter.setAttribute("role", "listitem"));
  }
});
