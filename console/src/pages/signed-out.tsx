import { Command } from "../ui/empty.tsx";

/** Nobody is signed in: how to get a link. It begins where this page was left. */
export function SignedOutPage() {
  return (
    <main class="welcome">
      <img src="/icon.svg" alt="" />
      <h1>Nobody is signed in</h1>
      <p>The console opens by a link from the command line, in the app’s directory. It works once, for two minutes.</p>
      <Command text="bedstone open" />
    </main>
  );
}
