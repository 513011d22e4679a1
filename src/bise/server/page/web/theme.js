// A classic script in the head: the theme is set before anything is drawn.
(() => {
  const themes = ['auto', 'light', 'dark'];
  let kept = null;
  try { kept = localStorage.getItem('bise.theme'); } catch { /* storage may be forbidden: follow the system */ }
  document.documentElement.dataset.theme = themes.includes(kept) ? kept : 'auto';
})();
