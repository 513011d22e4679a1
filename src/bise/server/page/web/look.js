// Light, dark, or as the system has it. theme.js sets what was kept before anything is drawn.
const THEMES = ['auto', 'light', 'dark'];

export const themeName = () => document.documentElement.dataset.theme;

export function nextTheme() {
  const next = THEMES[(THEMES.indexOf(themeName()) + 1) % THEMES.length];
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem('bise.theme', next); } catch { /* forbidden: it holds until the page is left */ }
}
